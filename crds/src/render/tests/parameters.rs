//! What is wrong with parameters and their schema, and what is not shown of them.

use super::*;

fn check(schema: &Value, sensitive: &Value, parameters: &Value) -> Vec<String> {
    let compiled =
        compile(json!({"parameters": schema, "sensitive": sensitive})).expect("it compiles");
    compiled
        .check_parameters(parameters)
        .err()
        .unwrap_or_default()
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn wrong_parameters_are_told_with_path_and_value() {
    let schema = json!({
        "type": "object",
        "required": ["order"],
        "additionalProperties": false,
        "properties": {
            "order": {
                "type": "object",
                "required": ["id", "total"],
                "properties": {
                    "id": {"type": "string", "maxLength": 5},
                    "total": {"type": "number"},
                    "tags": {"type": "array", "items": {"type": ["string", "null"]}},
                    "mail": {"type": "string", "format": "email"},
                },
            },
        },
    });
    let told = |parameters| check(&schema, &json!([]), &parameters);
    assert_eq!(told(json!({"order": {"id": "7", "total": 1}})), [""; 0]);
    assert_eq!(
        told(json!({"order": {"id": "7", "total": "12,50"}})),
        ["/order/total: parameter \"order.total\" must be a number (got the string \"12,50\")"]
    );
    assert_eq!(
        told(json!({"order": {"total": 1, "tags": ["a", 7]}})),
        [
            "/order/id: parameter \"order.id\" is missing",
            "/order/tags/1: parameter \"order.tags.1\" must be null or a string (got the number 7)",
        ]
    );
    assert_eq!(
        told(json!({"ordre": {}})),
        [
            ": parameters has unknown members: \"ordre\"",
            "/order: parameter \"order\" is missing",
        ]
    );
    let told = told(json!({"order": {"id": "7777777", "total": 1, "mail": "none"}}));
    assert!(
        told[0].starts_with("/order/id: parameter \"order.id\": it is longer than 5"),
        "{told:?}"
    );
    assert!(
        told[1].starts_with("/order/mail: parameter \"order.mail\": it is not a \"email\""),
        "{told:?}"
    );
}

#[test]
fn parameters_are_an_object_whatever_the_schema_says() {
    let compiled = compile(json!({})).unwrap();
    assert!(compiled.check_parameters(&json!({"anything": 1})).is_ok());
    assert!(compiled.check_parameters(&json!([1])).is_err());
}

#[test]
fn the_value_of_a_sensitive_parameter_is_not_quoted() {
    let schema = json!({"properties": {"code": {"type": "string", "maxLength": 3}, "card": {"type": "array"}}});
    for parameters in [
        json!({"code": 918_273}),
        json!({"code": "918273"}),
        json!({"card": "918273"}),
    ] {
        let told = check(&schema, &json!(["/code", "/card/0"]), &parameters);
        assert_eq!(told.len(), 1);
        assert!(!told[0].contains("918273"), "{told:?}");
    }
}

#[test]
fn sensitive_parameters_are_redacted() {
    let parameters =
        json!({"code": "918273", "order": {"id": 7, "card": {"number": "4111"}}, "a/b": 1});
    let sensitive = ["/code", "/order/card", "/a~1b", "/none"].map(str::to_owned);
    assert_eq!(
        redact(parameters, &sensitive),
        json!({"code": REDACTED, "order": {"id": 7, "card": REDACTED}, "a/b": REDACTED})
    );
    assert!(
        close(json!({"sensitive": ["/code"]}))
            .unwrap()
            .has_sensitive_parameters()
    );
    assert!(!close(json!({})).unwrap().has_sensitive_parameters());
}

#[test]
fn a_schema_that_is_none_or_reaches_outside_is_refused() {
    for (schema, path, sentence) in [
        (
            json!({"type": "objekt"}),
            "/spec/parameters/type: ",
            "is not a JSON Schema",
        ),
        (
            json!({"$ref": "https://schemas.example/x.json"}),
            "/spec/parameters",
            "a $ref must stay within the schema",
        ),
        (
            json!({"$ref": "file:///etc/passwd"}),
            "/spec/parameters",
            "a $ref must stay within the schema",
        ),
        (
            json!({"properties": {"a": {"pattern": "(?=x)"}}}),
            "/spec/parameters",
            "is not a JSON Schema",
        ),
        (
            json!({"properties": {"recipient": {}}}),
            "/spec/parameters/properties/recipient: ",
            "the name recipient is taken",
        ),
    ] {
        let found = problems(json!({"parameters": schema}));
        assert!(
            found.starts_with(path) && found.contains(sentence),
            "{schema}: {found}"
        );
    }
    let local =
        json!({"$defs": {"id": {"type": "string"}}, "properties": {"a": {"$ref": "#/$defs/id"}}});
    assert_eq!(check(&local, &json!([]), &json!({"a": 1})).len(), 1);
}
