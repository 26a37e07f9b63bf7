//! YAML: lines, meaning, bounds.

use std::fmt::Write as _;

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn one(text: &str) -> Document {
    let mut documents = read(text.as_bytes()).unwrap();
    assert_eq!(documents.len(), 1, "{text}");
    documents.remove(0)
}

fn refused(text: &str) -> (usize, String, String) {
    let error = read(text.as_bytes()).unwrap_err();
    (error.line, error.path.clone(), error.to_string())
}

#[test]
fn each_node_knows_its_line_and_a_missing_one_that_of_its_nearest_ancestor() {
    let document = one(
        "# a comment\nkind: Channel\nspec:\n  providers:\n  - name: a\n  - name: b\n    \
                        smtp: {host: mail.example,\n      port: 25}\n  a/b: |\n    text\n",
    );
    for (path, line) in [
        ("", 2),
        ("/kind", 2),
        ("/spec", 3),
        ("/spec/providers", 4),
        ("/spec/providers/0", 5),
        ("/spec/providers/1/name", 6),
        ("/spec/providers/1/smtp/port", 8),
        ("/spec/providers/1/smtp/tls", 7),
        ("/spec/providers/7/name", 4),
        ("/spec/a~1b", 9),
        ("/nowhere", 2),
    ] {
        assert_eq!(document.lines.line_of(path), line, "{path}");
    }
}

#[test]
fn scalars_mean_what_the_core_schema_says() {
    for (text, value) in [
        ("no", json!("no")),
        ("on", json!("on")),
        ("yes", json!("yes")),
        ("true", json!(true)),
        ("FALSE", json!(false)),
        ("~", Value::Null),
        ("12", json!(12)),
        ("-12", json!(-12)),
        ("+12", json!(12)),
        ("0o17", json!(15)),
        ("0xfF", json!(255)),
        ("18446744073709551615", json!(u64::MAX)),
        ("1.5", json!(1.5)),
        (".5", json!(0.5)),
        ("1e3", json!(1000.0)),
        ("12,50", json!("12,50")),
        ("1.2.3", json!("1.2.3")),
        ("1e", json!("1e")),
        (".", json!(".")),
        ("+", json!("+")),
        ("0x", json!("0x")),
        ("2026-12-24", json!("2026-12-24")),
        ("\"12\"", json!("12")),
        ("'true'", json!("true")),
        ("!!str 12", json!("12")),
        ("! 12", json!("12")),
        ("!!int 12", json!(12)),
    ] {
        assert_eq!(
            one(&format!("a: {text}")).value,
            json!({ "a": value }),
            "{text}"
        );
    }
}

#[test]
fn a_number_that_json_cannot_say_is_refused_rather_than_rounded() {
    for text in [".inf", "-.Inf", ".nan", "123456789012345678901234", "1e999"] {
        let (line, path, message) = refused(&format!("a:\n  b: {text}"));
        assert_eq!((line, path.as_str()), (2, "/a/b"));
        assert!(message.contains("put it in quotes"), "{message}");
    }
}

#[test]
fn several_documents_keep_their_own_lines_and_empty_ones_are_left_out() {
    let documents = read(b"---\na: 1\n---\n# nothing\n---\n\nb: 2\n...\n").unwrap();
    let lines: Vec<_> = documents.iter().map(|d| d.lines.line_of("")).collect();
    assert_eq!(lines, [2, 7]);
    assert_eq!(documents[1].value, json!({"b": 2}));
}

#[test]
fn a_byte_order_mark_and_windows_line_ends_are_no_trouble() {
    let document = one("\u{feff}a: 1\r\nb:\r\n  c: x\r\n");
    assert_eq!(document.value, json!({"a": 1, "b": {"c": "x"}}));
    assert_eq!(document.lines.line_of("/b/c"), 3);
}

#[test]
fn a_key_that_stands_twice_is_refused_with_both_lines() {
    let (line, path, message) = refused("spec:\n  a: 1\n  b: 2\n  a: 3\n");
    assert_eq!((line, path.as_str()), (4, "/spec/a"));
    assert_eq!(
        message,
        "key \"a\" is here a second time; it is on line 2 already"
    );
}

#[test]
fn broken_yaml_is_refused_where_it_breaks() {
    let (line, path, message) =
        refused("kind: Channel\nspec:\n  providers: [a, b\n  medium: email\n");
    assert!((3..=4).contains(&line), "line {line}");
    assert_eq!(path, "/spec/providers/1");
    assert!(message.starts_with("not YAML: "), "{message}");
}

#[test]
fn bytes_that_are_no_text_are_refused_with_their_line() {
    let error = read(b"a: 1\nb: \xff\xfe\n").unwrap_err();
    assert_eq!((error.line, error.kind), (2, YamlErrorKind::NotUtf8));
}

#[test]
fn an_alias_stands_for_its_anchor_and_has_its_own_line() {
    let document = one("a: &x\n  b: 1\nc: *x\n");
    assert_eq!(document.value, json!({"a": {"b": 1}, "c": {"b": 1}}));
    assert_eq!(document.lines.line_of("/c"), 3);
    assert_eq!(document.lines.line_of("/c/b"), 2);
}

#[test]
fn a_yaml_bomb_is_refused_at_the_alias_that_is_too_much() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..30 {
        let below = format!("*a{}", level - 1);
        let items = vec![below; 10].join(", ");
        writeln!(bomb, "a{level}: &a{level} [{items}]").unwrap();
    }
    let (line, path, message) = refused(&bomb);
    assert_eq!(line, 6);
    assert!(path.starts_with("/a5/"), "{path}");
    assert!(message.contains("more than 200000 values"), "{message}");
}

#[test]
fn a_bomb_of_one_long_text_is_refused_too() {
    let bomb = format!(
        "a: &a {}\nb: [{}]\n",
        "x".repeat(100_000),
        vec!["*a"; 1000].join(",")
    );
    let (line, _, message) = refused(&bomb);
    assert_eq!(line, 2);
    assert!(message.contains("4194304 bytes of text"), "{message}");
}

#[test]
fn an_alias_inside_of_what_it_stands_for_is_refused() {
    let (line, path, message) = refused("a: &x\n  b: *x\n");
    assert_eq!((line, path.as_str()), (2, "/a/b"));
    assert_eq!(message, "this alias stands inside of what it stands for");
}

#[test]
fn nesting_beyond_the_bound_is_refused_however_it_is_written() {
    let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    assert!(read(deep(MAX_DEPTH).as_bytes()).is_ok());
    assert_eq!(
        refused(&deep(MAX_DEPTH + 1)).2,
        YamlErrorKind::TooDeep.to_string()
    );
    // Beyond that the parser has a bound of its own.
    let endless = refused(&"[".repeat(MAX_BYTES)).2;
    assert!(endless.contains("recursion limit exceeded"), "{endless}");
    // By aliases: each level holds the one before, wrapped once more.
    let mut by_alias = "- &a0 []\n".to_owned();
    for level in 1..=MAX_DEPTH {
        writeln!(by_alias, "- &a{level} [*a{}]", level - 1).unwrap();
    }
    assert_eq!(refused(&by_alias).2, YamlErrorKind::TooDeep.to_string());
}

#[test]
fn a_file_beyond_the_bound_is_refused_unread() {
    let (line, _, message) = refused(&"a".repeat(MAX_BYTES + 1));
    assert_eq!(line, 1);
    assert!(
        message.starts_with("the file has 1048577 bytes"),
        "{message}"
    );
}

#[test]
fn what_yaml_has_and_json_has_not_is_refused_by_name() {
    assert_eq!(
        refused("a: &x {b: 1}\nc:\n  <<: *x\n").2,
        YamlErrorKind::MergeKey.to_string()
    );
    assert_eq!(
        refused("? [a]\n: b\n").2,
        YamlErrorKind::KeyNotScalar.to_string()
    );
    assert!(refused("a: !secret x\n").2.contains("unknown tag !secret"));
    assert!(
        refused("a: !!int x\n")
            .2
            .contains("not what its tag !!int says")
    );
    assert!(refused("a: !!set {x}\n").2.contains("unknown tag"));
}

proptest! {
    #[test]
    fn whatever_the_bytes_there_is_an_answer(bytes in "[-\\[\\]{}:,&*a!\"'|> \n#?%~<.0]{0,200}") {
        let _ = read(bytes.as_bytes());
    }

    #[test]
    fn json_reads_as_itself(text in "[a-z \\\\\"\n~/]{0,20}", number in any::<i64>(), flag in any::<bool>()) {
        let value = json!({"text": text, "number": number, "list": [flag, null_or(flag)], "": {}});
        prop_assert_eq!(one(&value.to_string()).value, value);
    }
}

fn null_or(flag: bool) -> Value {
    if flag { Value::Null } else { json!([]) }
}

/// Any JSON, with texts that are easily mistaken.
fn anything() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        "[a-z]{0,6}",
        "[-\\[\\]{}:,&*!|>'\"%@`# \n\ta\\\\~?=.0-9+]{0,12}",
        "( |\n|a|\u{85}|\u{2028}|\u{feff}|\u{1}|é|漢){0,8}",
        Just("true".to_owned()),
        Just("0x1F".to_owned()),
        Just("<<".to_owned()),
        Just("{{ order.id }}\n{% if a %}\n  b\n{% endif %}\n".to_owned()),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1e9..1e9f64).prop_map(Value::from),
        text.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(text.clone(), inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_is_written_reads_back_as_the_same(value in anything()) {
        // Wrapped, since a document that is null alone counts as empty.
        let value = json!({"spec": value});
        let text = write(&value);
        let documents = read(text.as_bytes()).map_err(|error| {
            TestCaseError::fail(format!("{error}, line {}:\n{text}", error.line))
        })?;
        prop_assert_eq!(&documents[0].value, &value, "{}", text);
    }
}

#[test]
fn written_yaml_looks_as_people_write_it() {
    let value = json!({
        "kind": "NotificationTemplate",
        "spec": {
            "content": {"email": {"subject": "Order {{ order.id }}", "text": "Hello,\n\n  bye\n"}},
            "routing": {"channels": [{"name": "mail", "namespace": "shop"}, {"name": "12"}]},
            "samples": [],
            "suspend": false,
            "mixed": [[1, 2], "no"],
        },
    });
    assert_eq!(
        write(&value),
        "kind: NotificationTemplate\n\
         spec:\n\
         \x20 content:\n\
         \x20   email:\n\
         \x20     subject: \"Order {{ order.id }}\"\n\
         \x20     text: |\n\
         \x20       Hello,\n\
         \n\
         \x20         bye\n\
         \x20 mixed:\n\
         \x20 - - 1\n\
         \x20   - 2\n\
         \x20 - \"no\"\n\
         \x20 routing:\n\
         \x20   channels:\n\
         \x20   - name: mail\n\
         \x20     namespace: shop\n\
         \x20   - name: \"12\"\n\
         \x20 samples: []\n\
         \x20 suspend: false\n"
    );
}
