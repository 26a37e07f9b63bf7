//! The `CustomResourceDefinitions`, and what their schemas say about a document.

use std::fmt::Write as _;
use std::sync::LazyLock;

use kube::CustomResourceExt;
use serde_json::{Map, Value};

use crate::validate::{Problem, escape};
use crate::{Channel, Kind, NotificationTemplate, RecipientGroup, Schedule, pattern};

/// The definition of a kind, as `kubectl apply` takes it.
///
/// `nullable` is taken out of what the derive makes: an optional field that is null is then pruned by the API server,
/// so that `has()` in a rule means that there is a value.
pub fn definition(kind: Kind) -> &'static Value {
    &DEFINITIONS[kind as usize]
}

/// The definition of a kind as YAML: what `crdgen` writes into the chart, `charts/herald/files/crds/<plural>.yaml`.
pub fn manifest(kind: Kind) -> String {
    let mut yaml = String::from("# Written by crdgen from the types in crds/src; do not edit.\n");
    write_yaml(definition(kind), 0, &mut yaml);
    yaml
}

/// Writes a value in block style. Strings that another reader might take for something else are quoted as in JSON.
fn write_yaml(value: &Value, depth: usize, yaml: &mut String) {
    match value {
        Value::Object(object) if !object.is_empty() => {
            for (index, (key, value)) in object.iter().enumerate() {
                if index > 0 {
                    indent(depth, yaml);
                }
                write_scalar(key, yaml);
                yaml.push(':');
                // A list stands below its key without further indentation, as kubectl writes it.
                let nested = usize::from(value.is_object());
                write_below(value, depth + nested, yaml);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    indent(depth, yaml);
                }
                yaml.push_str("- ");
                write_yaml(item, depth + 1, yaml);
            }
        }
        Value::String(text) => {
            write_scalar(text, yaml);
            yaml.push('\n');
        }
        scalar_or_empty => {
            let _ = writeln!(yaml, "{scalar_or_empty}");
        }
    }
}

fn write_below(value: &Value, depth: usize, yaml: &mut String) {
    let empty = match value {
        Value::Object(object) => object.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => true,
    };
    if empty {
        yaml.push(' ');
    } else {
        yaml.push('\n');
        indent(depth, yaml);
    }
    write_yaml(value, depth, yaml);
}

fn indent(depth: usize, yaml: &mut String) {
    yaml.extend(std::iter::repeat_n("  ", depth));
}

fn write_scalar(text: &str, yaml: &mut String) {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._/- ,()".contains(c);
    let word = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && !text.ends_with(' ')
        && text.chars().all(plain)
        && !word.contains(&text.to_ascii_lowercase().as_str());
    if is_plain {
        yaml.push_str(text);
    } else {
        yaml.push_str(&Value::from(text).to_string());
    }
}

static DEFINITIONS: LazyLock<[Value; 4]> = LazyLock::new(|| {
    [
        Channel::crd(),
        NotificationTemplate::crd(),
        RecipientGroup::crd(),
        Schedule::crd(),
    ]
    .map(|crd| {
        let mut crd = serde_json::to_value(crd).unwrap_or_default();
        tidy(&mut crd);
        crd
    })
});

/// Takes `nullable` out, and writes bounds as the integers that they are.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.retain(|key, value| !(key == "nullable" && value.is_boolean()));
            object.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        Value::Number(number) => {
            if let Some(float) = number.as_f64().filter(|f| f.fract() == 0.0)
                && number.as_i64().is_none()
            {
                *number = (float as i64).into();
            }
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// The schema of a kind's `spec`.
pub fn spec_schema(kind: Kind) -> &'static Value {
    &definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
}

/// Adds everything that the schema of `kind` refuses in `spec`. CEL rules are the kinds' own matter.
pub(crate) fn check(kind: Kind, spec: &Value, problems: &mut Vec<Problem>) {
    let mut path = "/spec".to_owned();
    if spec.is_null() {
        problems.push(Problem::new(path, "is missing"));
    } else {
        check_at(spec_schema(kind), spec, &mut path, problems);
    }
}

fn check_at(schema: &Value, value: &Value, path: &mut String, problems: &mut Vec<Problem>) {
    let mut problem = |message: String| problems.push(Problem::new(path.as_str(), message));
    match (schema["type"].as_str().unwrap_or_default(), value) {
        ("string", Value::String(text)) => check_text(schema, text, &mut problem),
        ("integer", Value::Number(number)) if number.is_i64() || number.is_u64() => {
            let given = number.as_i64().unwrap_or(i64::MAX);
            if let Some(least) = schema["minimum"].as_i64().filter(|least| given < *least) {
                problem(format!("must be at least {least} (got {number})"));
            }
            if let Some(most) = schema["maximum"].as_i64().filter(|most| given > *most) {
                problem(format!("must be at most {most} (got {number})"));
            }
        }
        ("array", Value::Array(items)) => {
            check_size(
                schema,
                ["minItems", "maxItems"],
                items.len(),
                "items",
                &mut problem,
            );
            check_items(schema, items, path, problems);
        }
        ("object", Value::Object(object)) => check_object(schema, object, path, problems),
        ("boolean", Value::Bool(_)) | ("", _) => {}
        (wanted, _) => problem(format!("must be {} (got {})", a(wanted), describe(value))),
    }
}

fn check_text(schema: &Value, text: &str, problem: &mut impl FnMut(String)) {
    check_size(
        schema,
        ["minLength", "maxLength"],
        text.chars().count(),
        "characters",
        problem,
    );
    if let Some(choices) = schema["enum"].as_array()
        && !choices.iter().any(|choice| choice == text)
    {
        let choices: Vec<_> = choices.iter().filter_map(Value::as_str).collect();
        let choices = choices.join(", ");
        problem(format!("must be one of {choices} (got {})", quote(text)));
    }
    if let Some(pattern) = schema["pattern"].as_str()
        && let Err(words) = pattern::check(pattern, text)
    {
        problem(if pattern::is_personal(pattern) {
            format!("must be {words}")
        } else {
            format!("must be {words} (got {})", quote(text))
        });
    }
}

fn check_size(
    schema: &Value,
    [least, most]: [&str; 2],
    size: usize,
    what: &str,
    problem: &mut impl FnMut(String),
) {
    if let Some(least) = schema[least]
        .as_u64()
        .filter(|least| (size as u64) < *least)
    {
        problem(format!("needs at least {least} {what} (got {size})"));
    }
    if let Some(most) = schema[most].as_u64().filter(|most| (size as u64) > *most) {
        problem(format!("may have at most {most} {what} (got {size})"));
    }
}

fn check_items(schema: &Value, items: &[Value], path: &mut String, problems: &mut Vec<Problem>) {
    let keys = match schema["x-kubernetes-list-type"].as_str() {
        Some("map") => schema["x-kubernetes-list-map-keys"].as_array(),
        _ => None,
    };
    let set = schema["x-kubernetes-list-type"] == "set";
    let mut seen = std::collections::HashSet::new();
    for (index, item) in items.iter().enumerate() {
        let length = path.len();
        let _ = write!(path, "/{index}");
        check_at(&schema["items"], item, path, problems);
        if set && !seen.insert(vec![item]) {
            problems.push(Problem::new(path.as_str(), "is in the list twice"));
        }
        if let Some(keys) = keys {
            let keys: Vec<_> = keys.iter().filter_map(Value::as_str).collect();
            if !seen.insert(keys.iter().map(|key| &item[*key]).collect()) {
                let key = keys.join(", ");
                let message = format!("another item of the list has the same {key}");
                problems.push(Problem::new(format!("{path}/{key}"), message));
            }
        }
        path.truncate(length);
    }
}

fn check_object(
    schema: &Value,
    object: &Map<String, Value>,
    path: &mut String,
    problems: &mut Vec<Problem>,
) {
    let mut problem = |message: String| problems.push(Problem::new(path.as_str(), message));
    let sizes = ["minProperties", "maxProperties"];
    check_size(schema, sizes, object.len(), "entries", &mut problem);
    if schema["x-kubernetes-preserve-unknown-fields"] == true {
        return;
    }
    let none = Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&none);
    let others = schema.get("additionalProperties");
    for required in schema["required"].as_array().into_iter().flatten() {
        let name = required.as_str().unwrap_or_default();
        if object.get(name).is_none_or(Value::is_null) {
            problems.push(Problem::new(
                format!("{path}/{}", escape(name)),
                "is missing",
            ));
        }
    }
    for (key, value) in object {
        let length = path.len();
        let _ = write!(path, "/{}", escape(key));
        match properties.get(key).or(others) {
            Some(_) if value.is_null() => {} // pruned by the API server: as if absent
            Some(schema) => check_at(schema, value, path, problems),
            None => {
                let known: Vec<_> = properties.keys().map(String::as_str).collect();
                let message = format!("unknown field; expected one of {}", known.join(", "));
                problems.push(Problem::new(path.as_str(), message));
            }
        }
        path.truncate(length);
    }
}

fn a(wanted: &str) -> String {
    match wanted {
        "integer" | "array" | "object" => format!("an {wanted}"),
        _ => format!("a {wanted}"),
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(flag) => format!("the boolean {flag}"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the string {}", quote(text)),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

/// A text in quotes, cut when it is long, with control characters escaped.
pub(crate) fn quote(text: &str) -> String {
    const SHOWN: usize = 60;
    let cut: String = text.chars().take(SHOWN).collect();
    let more = if cut.len() < text.len() { "…" } else { "" };
    format!("{cut:?}{more}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Calls `visit` with every schema below `schema` and its path.
    fn walk(schema: &Value, path: &str, visit: &mut impl FnMut(&Value, &str)) {
        visit(schema, path);
        for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
            walk(schema, &format!("{path}.{name}"), visit);
        }
        for inner in ["items", "additionalProperties"] {
            if schema[inner].is_object() {
                walk(&schema[inner], &format!("{path}[]"), visit);
            }
        }
    }

    fn walk_all(visit: &mut impl FnMut(&Value, &str)) {
        for kind in Kind::ALL {
            walk(spec_schema(kind), kind.as_str(), visit);
        }
    }

    #[test]
    fn every_string_list_map_and_number_of_a_spec_is_bounded() {
        walk_all(&mut |schema, path| {
            let free = schema["x-kubernetes-preserve-unknown-fields"] == true;
            let bounds: &[&str] = match schema["type"].as_str() {
                Some("string") if schema["enum"].is_array() => &[],
                Some("string") => &["maxLength"],
                Some("integer") => &["minimum", "maximum"],
                Some("array") => &["maxItems"],
                Some("object") if schema["additionalProperties"].is_object() => &["maxProperties"],
                Some("object") => {
                    assert!(free || schema["properties"].is_object(), "{path}");
                    &[]
                }
                Some("boolean") => &[],
                other => panic!("{path} has the type {other:?}"),
            };
            for bound in bounds {
                assert!(schema[bound].is_i64(), "{path} has no {bound}");
            }
        });
    }

    #[test]
    fn schemas_are_structural_explained_and_without_defaults_but_one() {
        walk_all(&mut |schema, path| {
            for keyword in ["oneOf", "anyOf", "allOf", "not", "nullable"] {
                assert!(schema.get(keyword).is_none(), "{path} has {keyword}");
            }
            let replicas = path == "Channel.replicas";
            assert_eq!(schema.get("default").is_some(), replicas, "{path}");
            assert_ne!(schema["format"], "uint32", "{path}");
            if let Some(pattern) = schema["pattern"].as_str() {
                assert!(pattern::is_known(pattern), "{path}: {pattern}");
            }
            for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                assert!(
                    property["description"].is_string(),
                    "{path}.{name} is not explained"
                );
            }
        });
    }

    #[test]
    fn everything_that_a_schema_refuses_is_told_at_once_with_its_path() {
        let spec = json!({
            "medium": "pigeon",
            "providers": [{"name": "A", "smpt": {}}, {"name": "A", "timeoutSeconds": 0}],
            "replicas": "two",
            "concurrency": 5000,
            "topics": null,
            "pod": {"env": [{"name": "X"}]},
        });
        let mut problems = Vec::new();
        check(Kind::Channel, &spec, &mut problems);
        problems.sort();
        let paths: Vec<_> = problems.iter().map(|p| p.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "/spec/concurrency",
                "/spec/medium",
                "/spec/pod/env/0/value",
                "/spec/providers/0/name",
                "/spec/providers/0/smpt",
                "/spec/providers/1/name",
                "/spec/providers/1/name",
                "/spec/providers/1/timeoutSeconds",
                "/spec/replicas",
            ]
        );
        assert_eq!(
            problems[8].message,
            "must be an integer (got the string \"two\")"
        );
        assert_eq!(problems[0].message, "must be at most 4096 (got 5000)");
    }

    #[test]
    fn a_message_about_an_address_does_not_show_it() {
        let spec = json!({"members": [{"address": {"email": "alice at shop.example"}}]});
        let mut problems = Vec::new();
        check(Kind::RecipientGroup, &spec, &mut problems);
        assert_eq!(problems[0].path, "/spec/members/0/address/email");
        assert!(
            !problems[0].message.contains("alice at"),
            "{}",
            problems[0].message
        );
    }
}
