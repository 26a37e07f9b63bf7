//! What is shown of a template.

use std::fs;

use clap::Parser as _;

use super::*;
use crate::cli::{Cli, Command};

const QUICKSTART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../crds/samples/quickstart");

/// What `herald render` prints, without colours.
fn herald_render(dir: &str, rest: &[&str]) -> Result<(ExitCode, String), CliError> {
    let words = [&["herald", "render", dir], rest].concat();
    let Command::Render(args) = Cli::try_parse_from(words).unwrap().command else {
        panic!("another command")
    };
    let mut out = Vec::new();
    let code = run(&args, &mut out)?;
    let out = String::from_utf8(out).unwrap();
    Ok((code, anstream::adapter::strip_str(&out).to_string()))
}

#[track_caller]
fn shown(rest: &[&str]) -> String {
    let (code, out) = herald_render(QUICKSTART, rest).unwrap();
    assert_eq!(code, ExitCode::SUCCESS, "{out}");
    out
}

#[test]
fn every_medium_is_shown_with_the_usual_sample() {
    let out = shown(&["order-shipped"]);
    assert!(out.starts_with("order-shipped sha256:"), "{out}");
    for part in [
        " in en\n",
        "── email ──",
        "Subject: Your order A-1042 is on its way",
        "Reply-To: Shop support <support@shop.example>",
        "X-Entity-Ref-ID: A-1042",
        "ParcelPost",
        "bytes of HTML",
        "── webhook ──",
        "{\"type\": \"order.shipped\", \"order\": \"A-1042\", \"total\": 68.45}",
    ] {
        assert!(out.contains(part), "no {part:?} in {out}");
    }
}

#[test]
fn a_sample_brings_its_locale_and_a_locale_that_is_given_goes_first() {
    let korean = shown(&["shop/order-shipped", "--sample", "korean"]);
    assert!(
        korean.contains("Subject: 주문 K-2211 상품이 발송되었습니다"),
        "{korean}"
    );
    let german = shown(&["order-shipped", "--sample", "korean", "--locale", "de-CH"]);
    assert!(
        german.contains("Subject: Ihre Bestellung K-2211"),
        "{german}"
    );
}

#[test]
fn one_medium_alone_and_as_json() {
    let out = shown(&["order-shipped", "--medium", "webhook", "-o", "json"]);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["template"], "shop/order-shipped");
    assert_eq!(report["locale"], "en");
    assert_eq!(report["errors"], json!([]));
    let messages = report["messages"].as_object().unwrap();
    assert_eq!(messages.keys().collect::<Vec<_>>(), ["webhook"]);
    assert!(
        messages["webhook"]["body"]
            .as_str()
            .unwrap()
            .contains("A-1042")
    );
}

#[test]
fn html_is_the_mail_and_nothing_else() {
    let out = shown(&["order-shipped", "-o", "html"]);
    assert!(
        out.contains("<!doctype html>") && out.ends_with("</html>\n"),
        "{out}"
    );
    let error = herald_render(
        QUICKSTART,
        &["order-shipped", "-o", "html", "--medium", "webhook"],
    );
    assert_eq!(
        error.unwrap_err().to_string(),
        "the template has no mail in HTML"
    );
}

#[test]
fn parameters_come_from_a_file_of_json_or_yaml() {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("a.json", r#"{"order": {"id": "Z-9", "total": 3}}"#),
        ("a.yaml", "order:\n  id: Z-9\n  total: 3\n"),
    ] {
        let file = dir.path().join(name);
        fs::write(&file, text).unwrap();
        let out = shown(&["order-shipped", "--parameters", file.to_str().unwrap()]);
        assert!(
            out.contains("Subject: Your order Z-9 is on its way"),
            "{out}"
        );
    }
}

#[test]
fn parameters_that_do_not_fit_are_named_with_their_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("wrong.json");
    fs::write(&file, r#"{"order": {"id": "Z-9", "total": "12,50"}}"#).unwrap();
    let rest = ["order-shipped", "--parameters", file.to_str().unwrap()];
    let (code, out) = herald_render(QUICKSTART, &rest).unwrap();
    assert_eq!(code, ExitCode::FAILURE);
    assert!(out.starts_with("parameters/order/total: "), "{out}");

    fs::write(&file, "order: [\n").unwrap();
    let error = herald_render(QUICKSTART, &rest).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("{}:1: not YAML: ", file.display())),
        "{error}"
    );
    fs::remove_file(&file).unwrap();
    let error = herald_render(QUICKSTART, &rest).unwrap_err().to_string();
    assert!(error.contains("cannot be read"), "{error}");
}

#[test]
fn what_is_not_there_is_answered_with_what_is() {
    let error = herald_render(QUICKSTART, &["order-shiped"])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("there is no NotificationTemplate order-shiped"),
        "{error}"
    );
    assert!(error.contains("shop/order-shipped"), "{error}");
    let error = herald_render(QUICKSTART, &["order-shipped", "--sample", "x"]).unwrap_err();
    assert!(
        error.to_string().contains("typical, korean, german"),
        "{error}"
    );
}

#[test]
fn a_broken_template_is_answered_with_what_is_wrong_and_where() {
    let dir = tempfile::tempdir().unwrap();
    let template = "apiVersion: herald.dev/v1alpha1\nkind: NotificationTemplate\nmetadata: {name: x}\nspec:\n  \
                    routing: {channels: [{name: mail}]}\n  content: {sms: {text: '{{ a'}}\n";
    let channel = "apiVersion: herald.dev/v1alpha1\nkind: Channel\nmetadata: {name: mail}\nspec:\n  \
                   medium: sms\n  providers: [{name: main, log: {}}]\n";
    fs::write(
        dir.path().join("x.yaml"),
        format!("{template}---\n{channel}"),
    )
    .unwrap();
    let (code, out) = herald_render(dir.path().to_str().unwrap(), &["x"]).unwrap();
    assert_eq!(code, ExitCode::FAILURE);
    let begins = format!(
        "{}:6: NotificationTemplate default/x /spec/content/sms/text: does not compile: ",
        dir.path().join("x.yaml").display()
    );
    assert!(out.starts_with(&begins), "{out}");
}

#[test]
fn a_message_that_does_not_render_leaves_the_others_to_be_seen() {
    let dir = tempfile::tempdir().unwrap();
    let template = "apiVersion: herald.dev/v1alpha1\nkind: NotificationTemplate\nmetadata: {name: x}\nspec:\n  \
                    routing: {channels: [{name: a}, {name: b}]}\n  \
                    content: {sms: {text: '{{ missing }}'}, webhook: {body: '[1]'}}\n";
    let channel = |name: &str, medium: &str| {
        format!(
            "---\napiVersion: herald.dev/v1alpha1\nkind: Channel\nmetadata: {{name: {name}}}\nspec:\n  \
             medium: {medium}\n  providers: [{{name: main, log: {{}}}}]\n"
        )
    };
    let text = format!(
        "{template}{}{}",
        channel("a", "sms"),
        channel("b", "webhook")
    );
    fs::write(dir.path().join("x.yaml"), text).unwrap();
    let (code, out) = herald_render(dir.path().to_str().unwrap(), &["x"]).unwrap();
    assert_eq!(code, ExitCode::FAILURE);
    assert!(out.contains("does not render: "), "{out}");
    assert!(out.contains("── webhook ──\n[1]\n"), "{out}");
}

#[test]
fn without_samples_it_says_what_is_needed_and_takes_the_object_itself() {
    let dir = tempfile::tempdir().unwrap();
    let text = "apiVersion: herald.dev/v1alpha1\nkind: NotificationTemplate\nmetadata: {name: x}\nspec:\n  \
                routing: {channels: [{name: a}]}\n  \
                parameters: {type: object, required: [code], properties: {code: {type: string}}}\n  \
                content: {sms: {text: '{{ code }}'}}\n---\n\
                apiVersion: herald.dev/v1alpha1\nkind: Channel\nmetadata: {name: a}\nspec:\n  \
                medium: sms\n  providers: [{name: main, log: {}}]\n";
    fs::write(dir.path().join("x.yaml"), text).unwrap();
    let dir = dir.path().to_str().unwrap();
    let error = herald_render(dir, &["x"]).unwrap_err().to_string();
    assert!(
        error.starts_with("template x has no samples") && error.ends_with("give --parameters FILE"),
        "{error}"
    );
    let (code, out) = herald_render(dir, &["x", "-p", "{code: '4027'}"]).unwrap();
    assert_eq!(code, ExitCode::SUCCESS, "{out}");
    assert!(out.ends_with("\n4027\n"), "{out}");
}
