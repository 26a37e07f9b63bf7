//! One message being rendered: block after block, until it is whole or too long.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use minijinja::Value as Evaluated;
use serde::de::IgnoredAny;

use super::{Block, Compiled, Email, MAX_RENDERED, Parameters, RenderError, Rendered, text};

/// One message being rendered.
pub(super) struct Run<'a> {
    pub(super) compiled: &'a Compiled,
    pub(super) context: Evaluated,
    /// How many bytes it may still print.
    pub(super) left: usize,
}

impl Run<'_> {
    pub(super) fn email(
        &mut self,
        email: &Email,
        default: Option<&Email>,
    ) -> Result<Rendered, RenderError> {
        let subject = one_line(self.block(&email.subject)?);
        let html = email
            .html
            .as_ref()
            .map(|html| self.block(html))
            .transpose()?;
        let text = match (&email.text, &email.html, &html) {
            (Some(text), _, _) => self.block(text)?,
            (None, Some(block), Some(html)) => self.derive(block, html)?,
            _ => String::new(),
        };
        let reply_to = email
            .reply_to
            .as_ref()
            .or_else(|| default?.reply_to.as_ref())
            .map(|block| {
                let address = self.block(block)?;
                let address = address.trim();
                if address.contains(is_break) {
                    return Err(RenderError::KeepToOneLine {
                        place: Box::new(self.compiled.place(block)),
                    });
                }
                Ok(address.to_owned())
            })
            .transpose()?
            .filter(|address| !address.is_empty());
        let mut headers = BTreeMap::new();
        let inherited = default.into_iter().flat_map(|default| &default.headers);
        for (name, block) in inherited
            .filter(|(name, _)| !has_header(&email.headers, name))
            .chain(&email.headers)
        {
            headers.insert(name.clone(), one_line(self.block(block)?));
        }
        Ok(Rendered::Email {
            subject,
            html,
            text,
            reply_to,
            headers,
        })
    }

    pub(super) fn webhook(
        &mut self,
        body: Option<&Block>,
        parameters: &Parameters,
    ) -> Result<Rendered, RenderError> {
        let Some(block) = body else {
            return Ok(Rendered::Webhook {
                body: None,
                parameters: Some(Arc::clone(&parameters.json)),
            });
        };
        let body = self.block(block)?;
        if let Err(error) = serde_json::from_str::<IgnoredAny>(&body) {
            return Err(RenderError::PrintJson {
                place: Box::new(self.compiled.place(block)),
                message: error.to_string(),
            });
        }
        Ok(Rendered::Webhook {
            body: Some(body),
            parameters: None,
        })
    }

    fn derive(&mut self, block: &Block, html: &str) -> Result<String, RenderError> {
        let text = text::from_html(html);
        self.left = self
            .left
            .checked_sub(text.len())
            .ok_or_else(|| RenderError::Fit {
                place: Box::new(self.compiled.place(block)),
                limit: MAX_RENDERED,
            })?;
        Ok(text)
    }

    pub(super) fn block(&mut self, block: &Block) -> Result<String, RenderError> {
        let failed = |error: &minijinja::Error| {
            RenderError::from_engine(
                self.compiled.place(block),
                error,
                &self.compiled.environment,
            )
        };
        let template = self
            .compiled
            .environment
            .get_template(&block.name)
            .map_err(|error| failed(&error))?;
        let mut output = Limited {
            bytes: Vec::with_capacity(template.source().len() + 64),
            left: self.left,
        };
        template
            .render_captured_to(self.context.clone(), &mut output)
            .map_err(|error| failed(&error))?;
        self.left = output.left;
        // The engine writes whole strings, so that nothing is ever replaced.
        Ok(String::from_utf8(output.bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }
}

/// Takes what a template prints until it is too much.
struct Limited {
    bytes: Vec<u8>,
    left: usize,
}

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left = self
            .left
            .checked_sub(bytes.len())
            .ok_or(io::ErrorKind::FileTooLarge)?;
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a header field of that name, in any case, is among `headers`.
fn has_header(headers: &BTreeMap<String, Block>, name: &str) -> bool {
    headers.keys().any(|other| other.eq_ignore_ascii_case(name))
}

/// Whether a character could end a header field, or be taken for an end by some program on the way.
fn is_break(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}

/// A header field's value: each run of line breaks and other control characters becomes one space.
fn one_line(printed: String) -> String {
    let trimmed = printed.trim();
    if trimmed.len() == printed.len() && !printed.contains(is_break) {
        return printed;
    }
    let mut line = String::with_capacity(trimmed.len());
    let mut parts = trimmed
        .split(is_break)
        .map(str::trim)
        .filter(|part| !part.is_empty());
    line.extend(parts.next());
    for part in parts {
        line.push(' ');
        line.push_str(part);
    }
    line
}
