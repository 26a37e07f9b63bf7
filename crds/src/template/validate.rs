//! What is wrong with a NotificationTemplate, short of rendering it.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Map, Value};

use super::{Content, EmailContent, NotificationTemplate, NotificationTemplateSpec};
use crate::address::check_locale;
use crate::validate::{FREE_OBJECT_BYTES, Problem, Problems, Validate, escape, validate};
use crate::{Kind, pattern};

/// At most this many bytes in one content block, whatever its fields.
pub const BLOCK_BYTES: usize = 64 * 1024;

/// At most this many bytes in all partials together.
const PARTIALS_BYTES: usize = 128 * 1024;

/// Header fields of a mail that Herald sets.
const TAKEN_HEADERS: [&str; 16] = [
    "From",
    "Sender",
    "To",
    "Cc",
    "Bcc",
    "Subject",
    "Date",
    "Message-ID",
    "Reply-To",
    "Return-Path",
    "MIME-Version",
    "Content-Type",
    "Content-Transfer-Encoding",
    "Received",
    "List-Unsubscribe",
    "List-Unsubscribe-Post",
];

/// JSON Schema 2020-12, the dialect of `parameters`.
const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

impl Validate for NotificationTemplate {
    fn validate(&self) -> Vec<Problem> {
        let spec = &self.spec;
        validate(
            Kind::NotificationTemplate,
            &self.metadata,
            spec,
            |problems| {
                check_routing(spec, problems);
                if let Some(parameters) = &spec.parameters {
                    check_parameters(parameters, problems);
                    check_sensitive(spec, parameters, problems);
                }
                check_content("/spec/content", &spec.content, problems);
                check_translations(spec, problems);
                check_partials(&spec.partials, problems);
                for (index, sample) in spec.samples.iter().enumerate() {
                    let at = format!("/spec/samples/{index}/parameters");
                    problems.size(at, &sample.parameters, FREE_OBJECT_BYTES);
                }
            },
        )
    }
}

fn check_routing(spec: &NotificationTemplateSpec, problems: &mut Problems) {
    let mut seen = HashSet::new();
    for (index, route) in spec.routing.channels.iter().enumerate() {
        if !seen.insert(route) {
            let at = format!("/spec/routing/channels/{index}");
            problems.add(at, "is in the list twice: everybody would get it twice");
        }
    }
}

fn check_parameters(parameters: &Map<String, Value>, problems: &mut Problems) {
    let at = "/spec/parameters";
    problems.size(at, parameters, FREE_OBJECT_BYTES);
    if let Some(dialect) = parameters.get("$schema")
        && dialect.as_str().map(|d| d.trim_end_matches('#')) != Some(DIALECT)
    {
        problems.add(
            format!("{at}/$schema"),
            format!("must be {DIALECT}, or absent"),
        );
    }
    if parameters.get("type").is_some_and(|t| t != "object") {
        problems.add(
            format!("{at}/type"),
            "must be object: parameters have names",
        );
    }
    let mut path = at.to_owned();
    for (key, value) in parameters {
        local(key, value, &mut path, problems);
    }
    let schema = Value::Object(parameters.clone());
    if let Err(error) = jsonschema::draft202012::meta::validate(&schema) {
        let path = format!("{at}{}", error.instance_path());
        problems.add(path, format!("is not JSON Schema: {error}"));
    }
}

/// Refuses references that leave the document: nothing is fetched.
fn local(key: &str, value: &Value, path: &mut String, problems: &mut Problems) {
    let length = path.len();
    path.push('/');
    path.push_str(&escape(key));
    match value {
        Value::String(target)
            if ["$ref", "$dynamicRef"].contains(&key) && !target.starts_with('#') =>
        {
            problems.add(
                path.as_str(),
                "must begin with #: nothing is fetched from elsewhere",
            );
        }
        Value::Object(object) => {
            for (key, value) in object {
                local(key, value, path, problems);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                local(&index.to_string(), item, path, problems);
            }
        }
        _ => {}
    }
    path.truncate(length);
}

/// A pointer that leads nowhere would leave in the open what its author believes hidden.
fn check_sensitive(
    spec: &NotificationTemplateSpec,
    parameters: &Map<String, Value>,
    problems: &mut Problems,
) {
    let Some(declared) = parameters.get("properties").and_then(Value::as_object) else {
        return;
    };
    for (index, pointer) in spec.sensitive.iter().enumerate() {
        let first = pointer.split('/').nth(1).unwrap_or_default();
        let first = first.replace("~1", "/").replace("~0", "~");
        if !declared.contains_key(&first) {
            let message = format!(
                "parameters declares no property {first:?}: what is sensitive would not be hidden"
            );
            problems.add(format!("/spec/sensitive/{index}"), message);
        }
    }
}

fn check_content(at: &str, content: &Content, problems: &mut Problems) {
    if content.mediums().next().is_none() {
        problems.add(at, "give at least one block: email, sms or webhook");
    }
    if let Some(email) = &content.email {
        check_email_block(&format!("{at}/email"), email, problems);
    }
    if let Some(sms) = &content.sms {
        check_bytes(format!("{at}/sms"), sms.text.len(), problems);
    }
    if let Some(body) = content.webhook.as_ref().and_then(|w| w.body.as_ref()) {
        check_bytes(format!("{at}/webhook"), body.len(), problems);
    }
}

fn check_email_block(at: &str, email: &EmailContent, problems: &mut Problems) {
    let EmailContent {
        subject,
        html,
        text,
        reply_to,
        headers,
    } = email;
    if html.is_none() && text.is_none() {
        problems.add(at, "a mail needs html or text");
    }
    let optional = [html, text, reply_to]
        .into_iter()
        .flatten()
        .map(String::len);
    let fields = headers.iter().map(|(name, value)| name.len() + value.len());
    let bytes = subject.len() + optional.sum::<usize>() + fields.sum::<usize>();
    check_bytes(at, bytes, problems);
    problems.headers(&format!("{at}/headers"), headers, &TAKEN_HEADERS);
}

fn check_bytes(at: impl Into<String>, bytes: usize, problems: &mut Problems) {
    if bytes > BLOCK_BYTES {
        problems.add(
            at,
            format!("may have at most {BLOCK_BYTES} bytes (got {bytes})"),
        );
    }
}

fn check_translations(spec: &NotificationTemplateSpec, problems: &mut Problems) {
    for (locale, content) in &spec.translations {
        let at = format!("/spec/translations/{}", escape(locale));
        if let Err(words) = check_locale(locale) {
            problems.add(&at, format!("must be {words}"));
        } else if locale.eq_ignore_ascii_case(spec.default_locale()) {
            problems.add(
                &at,
                "is the default locale, which content speaks: remove one of them",
            );
        }
        check_content(&at, content, problems);
        for medium in content
            .mediums()
            .filter(|medium| !spec.content.has(*medium))
        {
            let message = "content has no such block to translate: others would get nothing";
            problems.add(format!("{at}/{medium}"), message);
        }
    }
}

fn check_partials(partials: &BTreeMap<String, String>, problems: &mut Problems) {
    let mut bytes = 0;
    for (name, text) in partials {
        let at = format!("/spec/partials/{}", escape(name));
        if name.len() > 63 {
            problems.add(at, "a part's name may have at most 63 characters");
        } else {
            problems.pattern(at, pattern::DNS_LABEL, name);
        }
        bytes += text.len();
    }
    if bytes > PARTIALS_BYTES {
        let message = format!("may have at most {PARTIALS_BYTES} bytes altogether (got {bytes})");
        problems.add("/spec/partials", message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Medium;

    #[test]
    fn a_block_exists_for_exactly_the_mediums_that_content_lists() {
        let content = Content {
            sms: Some(super::super::SmsContent {
                text: "hello".to_owned(),
            }),
            ..Content::default()
        };
        let listed: Vec<_> = content.mediums().collect();
        for medium in Medium::ALL {
            assert_eq!(content.has(medium), listed.contains(&medium), "{medium}");
        }
        assert_eq!(listed, [Medium::Sms]);
    }
}
