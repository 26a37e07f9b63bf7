//! Values that break a bound or a rule of a schema.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::strings;

/// A value that breaks a bound, where it can be broken.
pub(super) fn break_bound(schema: &Value, bound: &str, value: &Value) -> Option<Value> {
    let limit = schema.get(bound)?;
    let number = limit.as_i64();
    Some(match bound {
        "enum" => json!("nonsense"),
        "pattern" => json!("\u{7}\u{7}\u{7}\u{7}\u{7}\u{7}\u{7}\u{7}\u{7}"),
        "maxLength" => json!("a".repeat(number? as usize + 1)),
        "minLength" => json!("a".repeat(number?.checked_sub(1).filter(|n| *n >= 0)? as usize)),
        "maximum" => json!(number? + 1),
        "minimum" => json!(number? - 1),
        "minItems" => json!([]),
        "minProperties" => json!({}),
        "maxItems" => {
            let first = value.as_array()?.first()?;
            let keys: Vec<_> = strings(&schema["x-kubernetes-list-map-keys"]).collect();
            let item = |index| {
                let mut item = first.clone();
                for key in &keys {
                    item[*key] = json!(format!("a{index}"));
                }
                item
            };
            (0..=number?).map(item).collect()
        }
        "maxProperties" => {
            let first = value.as_object()?.values().next()?;
            let key = |index: i64| {
                // Letters alone, so that it is also a language tag.
                let mut key = String::new();
                for digit in format!("{index:03}").bytes() {
                    let _ = write!(key, "{}", char::from(b'a' + digit - b'0'));
                }
                key
            };
            (0..=number?)
                .map(|index| (key(index), first.clone()))
                .collect()
        }
        _ => return None,
    })
}

/// Values that break the CEL rule with this message; none for a rule that this does not know, which a test finds.
pub(super) fn break_rule(message: &str, value: &Value) -> Vec<Value> {
    let with = |members: Value| {
        let mut broken = value.clone();
        if let (Some(broken), Value::Object(members)) = (broken.as_object_mut(), members) {
            broken.extend(members);
        }
        broken
    };
    let without = |members: &[&str]| {
        let mut broken = value.clone();
        if let Some(broken) = broken.as_object_mut() {
            broken.retain(|key, _| !members.contains(&key.as_str()));
        }
        broken
    };
    let starts = |start| message.starts_with(start);
    if starts("give exactly one of smtp") {
        let both = json!({"smtp": {"host": "a", "from": "a@b.example"}, "log": {}});
        vec![without(&["smtp", "webhook", "log"]), with(both)]
    } else if starts("selector goes with") {
        vec![
            with(json!({"from": "Same", "selector": {"matchLabels": {"a": "b"}}})),
            json!({"from": "Selector"}),
        ]
    } else if starts("minReplicas") {
        vec![with(json!({"minReplicas": 9, "maxReplicas": 3}))]
    } else if starts("give at least one block") {
        vec![json!({})]
    } else if starts("a mail needs html or text") {
        vec![without(&["html", "text"])]
    } else if starts("nobody could ever be") {
        vec![json!({}), json!({"managed": false})]
    } else if starts("give exactly one of recipient") {
        vec![json!({}), json!({"recipient": "alice", "group": "vip"})]
    } else if starts("an address needs") {
        vec![json!({}), json!({"locale": "en"})]
    } else if starts("give exactly one of schedule") {
        let both = json!({"schedule": "0 9 * * *", "at": "2026-12-24T18:00"});
        vec![without(&["schedule", "at"]), with(both)]
    } else {
        Vec::new()
    }
}
