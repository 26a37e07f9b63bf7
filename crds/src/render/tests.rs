mod parameters;
mod refused;

use std::time::Instant;

use serde_json::json;

use super::*;
use crate::{NotificationTemplate, NotificationTemplateSpec};

/// A template `shop/order` with what a test is about; `spec` lacks `routing` only.
fn template(name: &str, mut spec: Value) -> NotificationTemplate {
    spec["routing"] = json!({"channels": [{"name": "mail"}]});
    if spec.get("content").is_none() {
        spec["content"] = json!({"sms": {"text": "."}});
    }
    let spec: NotificationTemplateSpec = serde_json::from_value(spec).unwrap();
    let mut template = NotificationTemplate::new(name, spec);
    template.metadata.namespace = Some("shop".to_owned());
    template
}

fn close(spec: Value) -> Result<Definition, Vec<Problem>> {
    let brand = template(
        "brand",
        json!({"partials": {
            "footer": "{% include 'logo' %} {{ company }}",
            "logo": "<b>&</b>",
            "round": "{% include 'order/again' %}",
            "broken": "{{ 1 + }}",
        }}),
    );
    Definition::close(&template("order", spec), |name| {
        (name == "brand").then_some(&brand.spec)
    })
}

fn compile(spec: Value) -> Result<Compiled, Vec<Problem>> {
    Compiled::new(Arc::new(close(spec)?))
}

fn problems(spec: Value) -> String {
    let problems = compile(spec).expect_err("there is a problem");
    let lines: Vec<_> = problems
        .iter()
        .map(|problem| format!("{problem}\n"))
        .collect();
    lines.concat()
}

fn recipient() -> Arc<Recipient> {
    Arc::new(Recipient {
        id: Some("alice".into()),
        locale: "de-AT".into(),
        labels: BTreeMap::from([("tier".to_owned(), "vip".to_owned())]),
    })
}

fn render(
    spec: Value,
    medium: Medium,
    locale: &str,
    parameters: Value,
) -> Result<Rendered, RenderError> {
    let definition = Arc::new(close(spec).expect("it closes"));
    let compiled = Compiled::without_samples(definition).expect("it compiles");
    let parameters = compiled.prepare(parameters);
    compiled.render(medium, locale, &parameters, &recipient())
}

fn sms(text: &str, parameters: Value) -> Result<String, RenderError> {
    match render(
        json!({"content": {"sms": {"text": text}}}),
        Medium::Sms,
        "en",
        parameters,
    )? {
        Rendered::Sms { text } => Ok(text),
        other => panic!("not a text message: {other:?}"),
    }
}

#[test]
fn parameters_and_recipient_are_printed() {
    let text = "Order {{ order.id }} of {{ order.total }} for {{ recipient.id }} ({{ recipient.labels.tier }}, {{ recipient.locale }})";
    let printed = sms(text, json!({"order": {"id": "A-7", "total": 12.5}}));
    assert_eq!(printed.unwrap(), "Order A-7 of 12.5 for alice (vip, de-AT)");
}

#[test]
fn only_html_is_escaped() {
    let spec = json!({
        "content": {
            "email": {
                "subject": "{{ name }}",
                "html": "<p>{{ name }}</p>{% include 'line' %}",
                "text": "{{ name }} {% include 'line' %}",
            },
            "sms": {"text": "{{ name }}"},
            "webhook": {"body": "{\"name\": {{ name|tojson }}}"},
        },
        "partials": {"line": "<i>{{ name }}</i>"},
    });
    let name = json!({"name": "<Ann & \"Bob\">"});
    let Rendered::Email {
        subject,
        html,
        text,
        ..
    } = render(spec.clone(), Medium::Email, "en", name.clone()).unwrap()
    else {
        panic!("not a mail")
    };
    assert_eq!(subject, "<Ann & \"Bob\">");
    let escaped = "&lt;Ann &amp; &quot;Bob&quot;&gt;";
    assert_eq!(html.unwrap(), format!("<p>{escaped}</p><i>{escaped}</i>"));
    assert_eq!(text, "<Ann & \"Bob\"> <i><Ann & \"Bob\"></i>");
    assert_eq!(
        render(spec.clone(), Medium::Sms, "en", name.clone()).unwrap(),
        Rendered::Sms {
            text: "<Ann & \"Bob\">".to_owned()
        }
    );
    let Rendered::Webhook {
        body: Some(body),
        parameters: None,
    } = render(spec, Medium::Webhook, "en", name.clone()).unwrap()
    else {
        panic!("not a webhook")
    };
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), name);
}

#[test]
fn a_webhook_without_a_body_carries_the_parameters() {
    let spec = json!({"content": {"webhook": {}}});
    let parameters = json!({"order": {"id": 7}});
    assert_eq!(
        render(spec, Medium::Webhook, "en", parameters.clone()).unwrap(),
        Rendered::Webhook {
            body: None,
            parameters: Some(Arc::new(parameters))
        }
    );
}

#[test]
fn a_webhook_body_that_is_not_json_is_refused() {
    let spec = json!({"content": {"webhook": {"body": "{\"name\": \"{{ name }}\"}"}}});
    let error = render(spec, Medium::Webhook, "en", json!({"name": "\"Bob\""})).unwrap_err();
    assert_eq!(error.reason(), "print-json");
    assert!(
        error
            .to_string()
            .contains("/spec/content/webhook/body (en)"),
        "{error}"
    );
}

#[test]
fn what_was_rendered_survives_json() {
    let spec = json!({"content": {
        "email": {"subject": "Hi", "text": "x", "replyTo": "a@shop.example", "headers": {"X-Order": "7"}},
        "webhook": {},
    }});
    for medium in [Medium::Email, Medium::Webhook] {
        let rendered = render(spec.clone(), medium, "en", json!({"a": 1})).unwrap();
        assert_eq!(rendered.medium(), medium);
        let json = serde_json::to_string(&rendered).unwrap();
        assert_eq!(
            serde_json::from_str::<Rendered>(&json).unwrap(),
            rendered,
            "{json}"
        );
    }
}

#[test]
fn a_locale_falls_back_medium_by_medium() {
    let spec = json!({
        "defaultLocale": "en",
        "content": {
            "email": {"subject": "en", "text": "en", "replyTo": "en@shop.example", "headers": {"List-Id": "en", "X-A": "en"}},
            "sms": {"text": "en"},
        },
        "translations": {
            "pt": {"email": {"subject": "pt", "text": "pt"}, "sms": {"text": "pt"}},
            "pt-BR": {"email": {"subject": "pt-BR", "text": "pt-BR", "headers": {"list-id": "br"}}},
        },
    });
    let said = |medium, locale| match render(spec.clone(), medium, locale, json!({})).unwrap() {
        Rendered::Email { subject, .. } => subject,
        Rendered::Sms { text } => text,
        other @ Rendered::Webhook { .. } => panic!("{other:?}"),
    };
    for (locale, mail, text) in [
        ("pt-BR", "pt-BR", "pt"),
        ("PT-br", "pt-BR", "pt"),
        ("pt-BR-x-lisp", "pt-BR", "pt"),
        ("pt-PT", "pt", "pt"),
        ("pt", "pt", "pt"),
        ("ptx", "en", "en"),
        ("en-GB", "en", "en"),
        ("", "en", "en"),
    ] {
        assert_eq!(said(Medium::Email, locale), mail, "mail in {locale:?}");
        assert_eq!(said(Medium::Sms, locale), text, "text in {locale:?}");
    }
    let Rendered::Email {
        reply_to, headers, ..
    } = render(spec, Medium::Email, "pt-BR", json!({})).unwrap()
    else {
        panic!("not a mail")
    };
    assert_eq!(
        reply_to.as_deref(),
        Some("en@shop.example"),
        "it is not language"
    );
    let expected = [("X-A", "en"), ("list-id", "br")];
    assert_eq!(
        headers,
        expected
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    );
}

#[test]
fn a_medium_that_is_not_there_is_an_error_that_says_so() {
    let spec = json!({"content": {"sms": {"text": "x"}}});
    for medium in [Medium::Email, Medium::Webhook, Medium::Push] {
        let error = render(spec.clone(), medium, "ko", json!({})).unwrap_err();
        assert_eq!(error.reason(), "find-block");
        let sentence = format!("template \"order\" has no {medium} block in ko");
        assert!(error.to_string().starts_with(&sentence), "{error}");
    }
}

#[test]
fn text_is_derived_from_html_where_there_is_none() {
    let spec = json!({"content": {"email": {
        "subject": "x",
        "html": "<style>p {color: red}</style><h1>Hello {{ name }}</h1><p>Your <a href=\"https://shop.example/o/7\">order</a> is on its way.</p>",
    }}});
    let Rendered::Email { text, html, .. } =
        render(spec, Medium::Email, "en", json!({"name": "A & B"})).unwrap()
    else {
        panic!("not a mail")
    };
    assert!(html.unwrap().contains("A &amp; B"));
    assert!(text.contains("Hello A & B"), "{text}");
    assert!(text.contains("https://shop.example/o/7"), "{text}");
    assert!(!text.contains("color") && !text.contains('<'), "{text}");
}

#[test]
fn a_parameter_cannot_smuggle_a_header_field_in() {
    let spec = json!({"content": {"email": {
        "subject": "Order {{ id }}\n", "text": "x", "headers": {"X-Order": "{{ id }}"},
    }}});
    let id = json!({"id": "7\r\nBcc: all@shop.example\u{2028}\u{0}x"});
    let Rendered::Email {
        subject, headers, ..
    } = render(spec, Medium::Email, "en", id).unwrap()
    else {
        panic!("not a mail")
    };
    assert_eq!(subject, "Order 7 Bcc: all@shop.example x");
    assert_eq!(headers["X-Order"], "7 Bcc: all@shop.example x");

    let spec = json!({"content": {"email": {"subject": "x", "text": "x", "replyTo": "{{ to }}"}}});
    let error = render(
        spec,
        Medium::Email,
        "en",
        json!({"to": "a@b.example\r\nBcc: c@d.example"}),
    )
    .unwrap_err();
    assert_eq!(error.reason(), "keep-to-one-line");
}

#[test]
fn something_undefined_is_an_error_with_its_place() {
    let spec = json!({
        "content": {"sms": {"text": "x"}},
        "translations": {"ko": {"sms": {"text": "one\ntwo {{ order.id }}"}}},
    });
    let error = render(spec, Medium::Sms, "ko", json!({"order": {}})).unwrap_err();
    let sentence = error.to_string();
    assert!(
        sentence
            .starts_with("template \"order\", block /spec/translations/ko/sms/text (ko), line 2: ")
            && sentence.contains("`order.id`: it is undefined"),
        "{sentence}"
    );
    let place = error.place().unwrap();
    assert_eq!((place.line, place.partial.as_deref()), (Some(2), None));
}

#[test]
fn an_error_in_a_partial_names_the_partial_and_its_line() {
    let spec = json!({
        "content": {"sms": {"text": "one\n\n{% include 'outer' %}"}},
        "partials": {"outer": "{% include 'brand/footer' %}"},
    });
    let error = render(spec, Medium::Sms, "en", json!({})).unwrap_err();
    let place = error.place().unwrap();
    assert_eq!(place.partial.as_deref(), Some("brand/footer"));
    assert_eq!(place.line, Some(1));
    assert!(
        error.to_string().contains("`company`: it is undefined"),
        "{error}"
    );
}

#[test]
fn no_error_quotes_a_value() {
    for text in [
        "{{ secret + 1 }}",
        "{{ secret * secret }}",
        "{{ -secret }}",
        "{{ number ** number }}",
        "{{ number // 0 }}",
        "{{ secret|int }}",
        "{{ secret|float }}",
        "{{ secret|round }}",
        "{{ secret.code }}",
        "{{ secret() }}",
        "{{ secret.pop() }}",
        "{{ secret|dictsort }}",
        "{{ {}[secret] }}",
        "{{ secret|nothing }}",
        "{{ -list }}",
        "{{ list|sum }}",
        "{{ range(secret) }}",
        "{{ secret|indent(secret) }}",
        "{{ 1 is divisibleby(secret) }}",
        "{% for a, b in list %}{% endfor %}",
        "{{ number * 9223372036854775807 * 9223372036854775807 }}",
        "{{ secret|batch(0) }}",
        "{{ secret|sort(attribute=secret) }}",
        "{{ dict(secret) }}",
        "{{ list[secret] }}",
        "{{ secret|replace(number) }}",
        "{{ secret|join(list) }}",
        "{{ secret ~ missing }}",
        "{{ list|map(secret) }}",
        "{{ list|select(secret) }}",
        "{{ list|groupby(secret) }}",
        "{{ list|map(attribute=secret)|join }}",
    ] {
        let parameters = json!({
            "secret": "s3cr3t", "number": 918_273_645_918_273_645_i64, "list": ["s3cr3t"],
        });
        let Err(error) = sms(text, parameters) else {
            continue;
        };
        let sentence = error.to_string();
        assert!(
            !sentence.contains("s3cr3t") && !sentence.contains("918273645"),
            "{text}: {sentence}"
        );
    }
}

#[test]
fn the_closure_holds_what_is_included_and_nothing_else() {
    let definition = close(json!({
        "content": {"email": {"subject": "x", "html": "{% include 'mine' %}"}},
        "partials": {"mine": "{% include 'brand/footer' %}"},
    }))
    .unwrap();
    let names: Vec<_> = definition.partials.keys().map(String::as_str).collect();
    assert_eq!(names, ["brand/footer", "brand/logo"]);

    let json = definition.canonical_json();
    let read: Definition = serde_json::from_str(&json).unwrap();
    assert_eq!(read, definition);
    let compiled = Compiled::new(Arc::new(read)).unwrap();
    let parameters = compiled.prepare(json!({"company": "Shop & Co"}));
    let Rendered::Email { html, .. } = compiled
        .render(Medium::Email, "en", &parameters, &recipient())
        .unwrap()
    else {
        panic!("not a mail")
    };
    assert_eq!(html.unwrap(), "<b>&</b> Shop &amp; Co");
}

#[test]
fn an_include_in_a_comment_or_in_raw_text_is_none() {
    let text = "{# {% include 'none' %} #}{% raw %}{% include 'none' %}{% endraw %}";
    assert_eq!(sms(text, json!({})).unwrap(), "{% include 'none' %}");
}

#[test]
fn the_hash_is_that_of_the_content_alone() {
    let one = close(json!({"parameters": {"type": "object", "required": ["a"]}})).unwrap();
    let same = close(json!({"parameters": {"required": ["a"], "type": "object"}})).unwrap();
    let other = close(json!({"parameters": {"required": ["b"], "type": "object"}})).unwrap();
    assert_eq!(one.hash(), same.hash());
    assert_ne!(one.hash(), other.hash());
    let hash = one.hash();
    let digits = hash.strip_prefix("sha256:").unwrap();
    assert_eq!(digits.len(), 64);
    assert!(digits.chars().all(|c| c.is_ascii_hexdigit()));
    assert_eq!(crate::definition::hash_json(&one.canonical_json()), hash);
}

#[test]
fn samples_that_do_not_render_are_problems_with_their_path() {
    let found = problems(json!({
        "content": {"sms": {"text": "{{ name }}"}},
        "translations": {"ko": {"sms": {"text": "{{ name.first }}"}}},
        "parameters": {"type": "object", "properties": {"name": {"type": "string"}}},
        "samples": [
            {"name": "good", "locale": "en", "parameters": {"name": "Ann"}},
            {"name": "everywhere", "parameters": {"name": "Ann"}},
            {"name": "wrong", "parameters": {"name": 7}},
        ],
    }));
    let lines: Vec<_> = found.lines().collect();
    assert_eq!(lines.len(), 2, "{found}");
    assert!(
        lines[0].starts_with("/spec/samples/1: sample \"everywhere\" does not render: template \"order\", block /spec/translations/ko/sms/text (ko), line 1: ")
            && lines[0].contains("`name.first`: it is undefined"),
        "{found}"
    );
    assert_eq!(
        lines[1],
        "/spec/samples/2/parameters/name: parameter \"name\" must be a string (got the number 7)"
    );
}

#[test]
fn what_is_called_and_not_there_is_a_problem_without_a_sample_too() {
    let found = problems(json!({
        "content": {"email": {
            "subject": "{{ name | uper }}",
            "html": "<p>\n{% if name is emty %}{{ shuot(name) }}{% endif %}\n{% include 'own' %}",
            "text": "{{ names | map('uper') | list }}{{ names | select('emty') | list }}",
        }},
        "partials": {"own": "{% filter shout %}x{% endfilter %}"},
    }));
    let lines: Vec<_> = found.lines().collect();
    assert_eq!(
        lines,
        [
            "/spec/content/email/html: line 2: there is no function \"shuot\"",
            "/spec/content/email/html: line 2: there is no test \"emty\"",
            "/spec/content/email/subject: line 1: there is no filter \"uper\"",
            "/spec/content/email/text: line 1: there is no filter \"uper\"",
            "/spec/content/email/text: line 1: there is no test \"emty\"",
            "/spec/partials/own: line 1: there is no filter \"shout\"",
        ]
    );
}

#[test]
fn what_is_wrong_with_samples_is_told_beside_an_unknown_call() {
    for call in [
        "{{ name | uper }}",
        "{{ uper(name) }}",
        "{{ name is uper }}",
    ] {
        let found = problems(json!({
            "content": {"sms": {"text": "{{ name }}"}},
            "translations": {"ko": {"sms": {"text": call}}},
            "parameters": {"type": "object", "properties": {"name": {"type": "string"}}},
            "samples": [
                {"name": "everywhere", "parameters": {"name": "Ann"}},
                {"name": "mistyped", "parameters": {"nmae": "Ann"}},
                {"name": "wrong", "parameters": {"name": 7}},
            ],
        }));
        let lines: Vec<_> = found.lines().collect();
        let beginnings = [
            "/spec/translations/ko/sms/text: line 1: there is no ",
            "/spec/samples/1: sample \"mistyped\" does not render: template \"order\", block /spec/content/sms/text (en)",
            "/spec/samples/2/parameters/name: ",
        ];
        assert_eq!(lines.len(), beginnings.len(), "{found}");
        for (line, beginning) in lines.iter().zip(beginnings) {
            assert!(line.starts_with(beginning), "{found}");
        }
    }
}

#[test]
fn what_a_template_defines_itself_may_be_called() {
    compile(json!({
        "content": {"sms": {"text": "{% macro shout(x) %}{{ x | upper }}{{ caller() }}{% endmacro %}{{ shout(name) }}\
            {% call shout(name) %}!{% endcall %}{% include 'own' %}{% set f = range %}{{ f(3) | list }}\
            {% for i in range(3) recursive %}{{ loop.index }}{% if i is odd %}{{ loop([]) }}{% endif %}{% endfor %}\
            {{ names | map('upper') | select('string') | map(attribute='a') | join(', ') }}\
            {{ names | selectattr('a') | rejectattr('a', 'eq', 1) | list }}"}},
        "partials": {"own": "{{ shout('again') }}"},
    }))
    .unwrap();
}

#[test]
fn a_deduplication_key_sees_the_parameters_alone() {
    let key = |key: &str, parameters| {
        let compiled =
            compile(json!({"deduplication": {"key": key, "windowSeconds": 60}})).unwrap();
        compiled.deduplication_key(&compiled.prepare(parameters))
    };
    assert_eq!(
        key("{{ order.id }}", json!({"order": {"id": "<7>"}}))
            .unwrap()
            .unwrap(),
        "<7>"
    );
    assert_eq!(
        key("{{ recipient.id }}", json!({})).unwrap_err().reason(),
        "evaluate"
    );
    let long = key("{{ 'x' * 1025 }}", json!({})).unwrap_err();
    assert!(
        long.to_string().contains("longer than 1024 bytes"),
        "{long}"
    );

    let compiled = compile(json!({})).unwrap();
    assert_eq!(
        compiled
            .deduplication_key(&compiled.prepare(json!({})))
            .unwrap(),
        None
    );
}

#[test]
fn one_definition_renders_from_many_threads() {
    fn shared<T: Send + Sync + 'static>(_: &T) {}
    let compiled = Arc::new(compile(json!({"content": {"sms": {"text": "{{ n }}"}}})).unwrap());
    shared(&compiled);
    let parameters = compiled.prepare(json!({"n": 7}));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let rendered = compiled.render(Medium::Sms, "en", &parameters, &recipient());
                assert_eq!(
                    rendered.unwrap(),
                    Rendered::Sms {
                        text: "7".to_owned()
                    }
                );
            });
        }
    });
}
