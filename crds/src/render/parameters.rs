//! The parameters of a notification: whether they are right, and how a template sees them.

use std::collections::BTreeMap;
use std::sync::Arc;

use jsonschema::error::{TypeKind, ValidationErrorKind};
use jsonschema::{Draft, PatternOptions, ValidationError, Validator};
use minijinja::value::{Enumerator, Object, Serde};
use serde_json::{Map, Value};

use crate::Problem;

/// What a sensitive parameter is replaced by where a notification is stored or shown.
pub const REDACTED: &str = "[redacted]";

/// What a template calls whom the message is for.
pub(super) const RECIPIENT: &str = "recipient";

/// The members of a JSON Schema by which an object may have properties that `properties` does not list.
const OPENERS: [&str; 12] = [
    "additionalProperties",
    "patternProperties",
    "unevaluatedProperties",
    "allOf",
    "anyOf",
    "oneOf",
    "if",
    "then",
    "else",
    "dependentSchemas",
    "$ref",
    "$dynamicRef",
];

/// The parameters that a template's schema declares; `None` if it declares none, or lets senders add others.
///
/// JSON Schema lets them add others unless it says no. A template that reads what is not declared is more often a slip
/// of the pen, which every message would stumble over, so it has to say `additionalProperties: true`.
pub(super) fn declared(schema: &Map<String, Value>) -> Option<&Map<String, Value>> {
    let is_open = OPENERS.iter().any(|opener| {
        let says = schema.get(*opener);
        says.is_some_and(|says| *opener != "additionalProperties" || *says != Value::Bool(false))
    });
    let properties = schema.get("properties")?.as_object()?;
    (!is_open).then_some(properties)
}

/// The most problems that are told about one set of parameters.
const MOST_PROBLEMS: usize = 32;

/// The longest value that a problem quotes, in characters.
const LONGEST_QUOTE: usize = 40;

/// A notification's parameters in the form that templates read: made once, for every recipient.
#[derive(Debug, Clone)]
pub struct Parameters {
    pub(super) json: Arc<Value>,
    pub(super) value: minijinja::Value,
}

impl Parameters {
    pub(super) fn new(json: Arc<Value>) -> Self {
        let value = minijinja::Value::from(Serde(&*json));
        Self { json, value }
    }

    /// The parameters as they were given.
    pub fn json(&self) -> &Arc<Value> {
        &self.json
    }
}

/// Who a message is for, as a template sees it: `recipient.id`, `recipient.locale`, `recipient.labels.tier`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recipient {
    /// The id in the directory; `None` for a bare address, and then undefined in the template.
    pub id: Option<Arc<str>>,
    /// The language tag the recipient asked for, which need not be the one that is rendered.
    pub locale: Arc<str>,
    /// The labels in the directory.
    pub labels: BTreeMap<String, String>,
}

impl Object for Recipient {
    fn get_value(self: &Arc<Self>, key: &minijinja::Value) -> Option<minijinja::Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<minijinja::Value> {
        match key {
            "id" => self.id.as_deref().map(minijinja::Value::from),
            "locale" => Some(minijinja::Value::from(&*self.locale)),
            "labels" => Some(minijinja::Value::from(self.labels.clone())),
            _ => None,
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Str(&["id", "locale", "labels"])
    }
}

/// What a template sees: the parameters at the top, and `recipient`.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) parameters: minijinja::Value,
    pub(super) recipient: Option<Arc<Recipient>>,
}

impl Object for Context {
    fn get_value(self: &Arc<Self>, key: &minijinja::Value) -> Option<minijinja::Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<minijinja::Value> {
        if key == RECIPIENT {
            let recipient = Arc::clone(self.recipient.as_ref()?);
            return Some(minijinja::Value::from_dyn_object(recipient));
        }
        let value = self.parameters.get_attr(key).ok()?;
        (!value.is_undefined()).then_some(value)
    }
}

/// A template's JSON Schema, ready to check parameters.
#[derive(Debug)]
pub(super) struct Schema {
    validator: Validator,
    sensitive: Vec<String>,
}

impl Schema {
    /// Compiles `schema` (2020-12). It reads nothing: a reference that leaves it is refused. `pattern` is matched in
    /// linear time, so look-around is refused too; `format` is checked.
    pub(super) fn new(
        schema: &Map<String, Value>,
        sensitive: &[String],
    ) -> Result<Self, Vec<Problem>> {
        if schema
            .get("properties")
            .is_some_and(|properties| properties.get(RECIPIENT).is_some())
        {
            return Err(vec![Problem::new(
                "/spec/parameters/properties/recipient",
                "the name recipient is taken: it is whom the message is for; choose another",
            )]);
        }
        let validator = jsonschema::options()
            .with_draft(Draft::Draft202012)
            .offline()
            .with_pattern_options(PatternOptions::regex())
            .should_validate_formats(true)
            .build(&Value::Object(schema.clone()))
            .map_err(|error| {
                let message = match error.kind() {
                    ValidationErrorKind::Referencing(_) => {
                        format!("a $ref must stay within the schema: {error}")
                    }
                    _ => format!("is not a JSON Schema: {error}"),
                };
                vec![Problem::new(
                    format!("/spec/parameters{}", error.instance_path()),
                    message,
                )]
            })?;
        Ok(Self {
            validator,
            sensitive: sensitive.to_vec(),
        })
    }

    pub(super) fn check(&self, parameters: &Value) -> Result<(), Vec<Problem>> {
        if self.validator.is_valid(parameters) {
            return Ok(());
        }
        let mut problems: Vec<_> = self
            .validator
            .iter_errors(parameters)
            .take(MOST_PROBLEMS)
            .map(|error| self.problem(&error))
            .collect();
        problems.sort_unstable();
        problems.dedup();
        Err(problems)
    }

    fn problem(&self, error: &ValidationError<'_>) -> Problem {
        let mut path = error.instance_path().to_string();
        let message = match error.kind() {
            ValidationErrorKind::Required { property } => {
                let property = property.as_str().unwrap_or_default();
                path = format!("{path}/{}", crate::validate::escape(property));
                format!("{} is missing", call(&path))
            }
            ValidationErrorKind::Type { kind } => {
                let wanted = match kind {
                    TypeKind::Single(kind) => with_article(&kind.to_string()),
                    TypeKind::Multiple(kinds) => {
                        let kinds: Vec<_> = kinds
                            .iter()
                            .map(|kind| with_article(&kind.to_string()))
                            .collect();
                        kinds.join(" or ")
                    }
                };
                let got = if self.is_sensitive(&path) {
                    String::new()
                } else {
                    format!(" (got {})", quote(error.instance()))
                };
                format!("{} must be {wanted}{got}", call(&path))
            }
            ValidationErrorKind::AdditionalProperties { unexpected }
            | ValidationErrorKind::UnevaluatedProperties { unexpected } => {
                let names: Vec<_> = unexpected
                    .iter()
                    .take(8)
                    .map(|name| format!("{name:?}"))
                    .collect();
                format!("{} has unknown members: {}", call(&path), names.join(", "))
            }
            // Their sentences quote the schema, and the value only where the word stands in its place.
            _ => format!("{}: {}", call(&path), error.masked_with("it")),
        };
        Problem::new(path, message)
    }

    /// Whether the value at `path` is, contains or belongs to a sensitive one.
    fn is_sensitive(&self, path: &str) -> bool {
        let within = |inner: &str, outer: &str| {
            inner
                .strip_prefix(outer)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.sensitive
            .iter()
            .any(|pointer| within(path, pointer) || within(pointer, path))
    }
}

/// `parameters` with what the `sensitive` JSON Pointers name replaced by [`REDACTED`].
pub fn redact(mut parameters: Value, sensitive: &[String]) -> Value {
    for pointer in sensitive {
        if let Some(value) = parameters.pointer_mut(pointer) {
            *value = Value::from(REDACTED);
        }
    }
    parameters
}

/// What a sentence calls the parameter at `path`.
fn call(path: &str) -> String {
    if path.is_empty() {
        return "parameters".to_owned();
    }
    let dotted = path[1..]
        .replace('/', ".")
        .replace("~1", "/")
        .replace("~0", "~");
    format!("parameter {dotted:?}")
}

fn with_article(kind: &str) -> String {
    match kind {
        "null" => "null".to_owned(),
        "array" | "integer" | "object" => format!("an {kind}"),
        _ => format!("a {kind}"),
    }
}

/// A value as a sentence quotes it: its kind, and itself if it is short.
fn quote(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) if text.chars().count() <= LONGEST_QUOTE => {
            format!("the string {text:?}")
        }
        Value::String(_) => "a long string".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}
