//! How a message would look, and what to mind about it.

use std::collections::BTreeMap;
use std::sync::Arc;

use herald_crds::Medium;
use herald_crds::render::{Compiled, Parameters, Recipient, Rendered};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Longest subject that mail programs show in full on a telephone.
const LONG_SUBJECT: usize = 78;

/// What is said over one medium.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    tag = "medium"
)]
pub enum Block {
    /// Mail.
    Email {
        /// Subject line.
        subject: String,
        /// HTML body.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        html: Option<String>,
        /// Plain text body.
        text: String,
        /// Where answers go.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reply_to: Option<String>,
        /// Further header fields.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        headers: BTreeMap<String, String>,
        /// What to mind.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        warnings: Vec<String>,
    },
    /// Text message.
    Sms {
        /// Its text.
        text: String,
        /// In so many parts it is sent, and paid for.
        segments: usize,
        /// `GSM-7` or `UCS-2`: one character beyond the GSM alphabet makes all of it UCS-2.
        encoding: String,
    },
    /// HTTP request.
    Webhook {
        /// Its body.
        #[schema(value_type = Object)]
        body: serde_json::Value,
    },
    /// It cannot be rendered.
    Broken {
        /// Why.
        error: String,
    },
}

/// Renders one medium's block; an error is a block too, so that the others can be shown beside it.
pub(super) fn block(
    compiled: &Compiled,
    medium: Medium,
    locale: &str,
    parameters: &Parameters,
    recipient: &Arc<Recipient>,
) -> Block {
    match compiled.render(medium, locale, parameters, recipient) {
        Ok(rendered) => rendered.into(),
        Err(error) => Block::Broken {
            error: error.to_string(),
        },
    }
}

impl From<Rendered> for Block {
    fn from(rendered: Rendered) -> Self {
        match rendered {
            Rendered::Email {
                subject,
                html,
                text,
                reply_to,
                headers,
            } => {
                let length = subject.chars().count();
                let long = (length > LONG_SUBJECT).then(|| {
                    format!(
                        "the subject has {length} characters; many programs show {LONG_SUBJECT}"
                    )
                });
                Self::Email {
                    subject,
                    html,
                    text,
                    reply_to,
                    headers,
                    warnings: long.into_iter().collect(),
                }
            }
            Rendered::Sms { text } => {
                let (encoding, segments) = segments(&text);
                Self::Sms {
                    text,
                    segments,
                    encoding: encoding.to_owned(),
                }
            }
            Rendered::Webhook { body, parameters } => Self::Webhook {
                body: match body {
                    Some(body) => serde_json::from_str(&body).unwrap_or(body.into()),
                    None => parameters.as_deref().cloned().unwrap_or_default(),
                },
            },
        }
    }
}

/// The encoding of a text message and the number of its parts (3GPP TS 23.038 and 23.040): 160 characters of the GSM
/// alphabet in one part, 153 in each of several; 70 and 67 UTF-16 units otherwise.
fn segments(text: &str) -> (&'static str, usize) {
    const BASIC: &str = "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà";
    const EXTENDED: &str = "\u{c}^{}\\[~]|€";
    let septets = |c: char| match c {
        c if BASIC.contains(c) => Some(1),
        c if EXTENDED.contains(c) => Some(2),
        _ => None,
    };
    // A character never lies across two parts.
    let parts = |units: &[usize], whole: usize, each: usize| {
        if units.iter().sum::<usize>() <= whole {
            return 1;
        }
        let mut parts = 1;
        let mut used = 0;
        for unit in units {
            if used + unit > each {
                parts += 1;
                used = 0;
            }
            used += unit;
        }
        parts
    };
    if let Some(units) = text.chars().map(septets).collect::<Option<Vec<_>>>() {
        return ("GSM-7", parts(&units, 160, 153));
    }
    let units: Vec<usize> = text.chars().map(char::len_utf16).collect();
    ("UCS-2", parts(&units, 70, 67))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_messages_are_counted_in_parts_of_their_encoding() {
        for (text, expected) in [
            (String::new(), ("GSM-7", 1)),
            ("x".repeat(160), ("GSM-7", 1)),
            ("x".repeat(161), ("GSM-7", 2)),
            ("x".repeat(306), ("GSM-7", 2)),
            ("x".repeat(307), ("GSM-7", 3)),
            ("€".repeat(80), ("GSM-7", 1)),
            ("€".repeat(81), ("GSM-7", 2)),
            // 152 and a half pairs: the pair does not lie across two parts.
            (
                format!("{}{}", "x".repeat(152), "€".repeat(77)),
                ("GSM-7", 3),
            ),
            ("한".repeat(70), ("UCS-2", 1)),
            ("한".repeat(71), ("UCS-2", 2)),
            ("😀".repeat(35), ("UCS-2", 1)),
            ("😀".repeat(36), ("UCS-2", 2)),
        ] {
            assert_eq!(
                segments(&text),
                expected,
                "{} characters",
                text.chars().count()
            );
        }
    }
}
