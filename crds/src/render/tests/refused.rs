//! Templates that are refused, or stopped.

use super::*;

#[test]
fn a_template_that_does_not_compile_is_refused_with_its_line() {
    let found = problems(json!({
        "content": {
            "sms": {"text": "one\n{{ 1 + }}"},
            "email": {"subject": "{% if %}", "html": "{{ open"},
        },
        "translations": {"ko": {"webhook": {"body": "{% endfor %}"}}},
        "deduplication": {"key": "{{", "windowSeconds": 60},
        "partials": {"footer": "{% for x %}"},
    }));
    for path in [
        "/spec/content/sms/text: does not compile: line 2: ",
        "/spec/content/email/subject: does not compile: line 1: ",
        "/spec/content/email/html: does not compile: line 1: ",
        "/spec/translations/ko/webhook/body: does not compile: line 1: ",
        "/spec/deduplication/key: does not compile: line 1: ",
        "/spec/partials/footer: does not compile: line 1: ",
    ] {
        assert!(found.contains(path), "{path} is not in\n{found}");
    }
    assert_eq!(found.lines().count(), 6, "{found}");
}

#[test]
fn a_loop_that_does_not_end_in_time_stops() {
    for text in [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a %}{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
        "{% set s = 'x' * 1000000000 %}",
        "{% set ns = namespace(s='xxxxxxxx') %}{% for a in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% for a in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
        "{{ range(99999)|map('string')|map('upper')|list|sort|join|length * 1 }}{% for a in range(999) %}{{ range(99999)|sum }}{% endfor %}",
    ] {
        let begun = Instant::now();
        let error = sms(text, json!({})).expect_err(text);
        assert_eq!(error.reason(), "work", "{text}: {error}");
        assert!(
            begun.elapsed().as_secs() < 20,
            "{text}: {:?}",
            begun.elapsed()
        );
    }
}

#[test]
fn a_template_that_prints_a_hundred_megabytes_stops_at_one() {
    for text in [
        "{% for a in range(100000) %}{{ line }}{% endfor %}".to_owned(),
        format!(
            "{{% for a in range(100000) %}}{}{{% endfor %}}",
            "x".repeat(1000)
        ),
    ] {
        let begun = Instant::now();
        let error = sms(&text, json!({"line": "y".repeat(1000)})).unwrap_err();
        assert_eq!(error.reason(), "fit");
        assert!(
            error.to_string().contains("longer than 1048576 bytes"),
            "{error}"
        );
        assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
    }
}

#[test]
fn the_parts_of_a_mail_share_one_megabyte() {
    let spec = json!({"content": {"email": {
        "subject": "x", "html": "{{ line * 600 }}", "text": "{{ line * count }}",
    }}});
    let line = "z".repeat(1000);
    let fits = render(
        spec.clone(),
        Medium::Email,
        "en",
        json!({"line": line, "count": 440}),
    );
    assert!(fits.is_ok(), "{:?}", fits.map(drop));
    let error = render(
        spec,
        Medium::Email,
        "en",
        json!({"line": line, "count": 460}),
    )
    .unwrap_err();
    assert_eq!(error.reason(), "fit");
    assert_eq!(&*error.place().unwrap().block, "/spec/content/email/text");
}

#[test]
fn a_partial_that_includes_itself_is_refused() {
    let circle = problems(json!({
        "content": {"sms": {"text": "{% include 'a' %}"}},
        "partials": {"a": "{% include 'b' %}", "b": "\n{% if false %}{% include 'order/a' %}{% endif %}"},
    }));
    assert_eq!(
        circle,
        "/spec/partials/a: partial \"order/b\": line 2: a partial includes itself: order/a → order/b → order/a\n"
    );
    let across = problems(json!({
        "content": {"sms": {"text": "{% include 'again' %}"}},
        "partials": {"again": "{% include 'brand/round' %}"},
    }));
    assert!(
        across.contains("order/again → brand/round → order/again"),
        "{across}"
    );
}

#[test]
fn what_cannot_be_known_in_advance_is_refused() {
    for (text, sentence) in [
        (
            "{% include name %}",
            "line 1: the name of what is included must be written out",
        ),
        (
            "\n{% if x %}{% include ['a', 'b'] %}{% endif %}",
            "line 2: the name of what is included must be written out",
        ),
        (
            "{% extends 'brand/footer' %}",
            "line 1: templates do not extend or import each other",
        ),
        (
            "{% import 'brand/footer' as f %}",
            "line 1: templates do not extend or import each other",
        ),
        (
            "{% from 'brand/footer' import f %}",
            "line 1: templates do not extend or import each other",
        ),
        (
            "{% include 'none' %}",
            "there is no partial \"none\" in template \"order\"",
        ),
        (
            "{% include 'brand/none' %}",
            "there is no partial \"none\" in template \"brand\"",
        ),
        (
            "{% include 'other/footer' %}",
            "there is no partial \"footer\" in template \"other\"",
        ),
        (
            "{% include 'brand/broken' %}",
            "partial \"brand/broken\": does not compile: line 1",
        ),
        ("{% include '../../etc/passwd' %}", "there is no partial"),
    ] {
        let found = problems(json!({"content": {"sms": {"text": text}}}));
        assert!(
            found.starts_with("/spec/content/sms/text: ") && found.contains(sentence),
            "{text}: {found}"
        );
    }
}

#[test]
fn a_variable_that_is_no_declared_parameter_is_refused_where_it_is_read() {
    let found = problems(json!({
        "parameters": {"type": "object", "properties": {"name": {}, "lines": {}}},
        "content": {
            "sms": {"text": "one\n{{ nam }}"},
            "email": {
                "subject": "{{ name }} {{ recipient.id }}",
                "html": "{% set a = name %}{{ a }}{% for line in lines %}{{ loop.index }} {{ line.total }}{% endfor %}\
                         {% macro m(x) %}{{ x }}{% endmacro %}{{ m(name) }}{{ range(3) | length }}{% include 'end' %}",
            },
        },
        "partials": {"end": "{{ name }}\n{{ sum }}", "for-others": "{{ theirs }}"},
    }));
    let lines: Vec<_> = found.lines().collect();
    assert_eq!(lines.len(), 2, "{found}");
    for (line, begins) in lines.iter().zip([
        "/spec/content/sms/text: line 2: \"nam\" is no parameter: declare it in parameters.properties",
        "/spec/partials/end: line 2: \"sum\" is no parameter",
    ]) {
        assert!(line.starts_with(begins), "{found}");
    }
}

#[test]
fn a_template_that_lets_senders_add_parameters_or_declares_none_may_read_any() {
    let content = json!({"sms": {"text": "{{ any }}"}});
    for parameters in [
        json!({"properties": {"name": {}}, "additionalProperties": true}),
        json!({"properties": {"name": {}}, "patternProperties": {"^a": {}}}),
        json!({"properties": {"name": {}}, "allOf": [{"properties": {"any": {}}}]}),
        json!({"type": "object"}),
    ] {
        let spec = json!({"parameters": parameters, "content": content});
        assert!(compile(spec).is_ok(), "{parameters}");
    }
    for parameters in [
        json!({"properties": {"name": {}}}),
        json!({"properties": {}, "additionalProperties": false}),
    ] {
        let spec = json!({"parameters": parameters, "content": content});
        assert!(compile(spec).is_err(), "{parameters}");
    }
}
