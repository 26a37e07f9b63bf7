//! One scenario for each path, against an API server that is a map.

use serde_json::{Value, json};

use super::*;
use crate::fixtures::{Bench, document};
use crate::status::summary;

fn spec(text: &str) -> Value {
    json!({
        "routing": {"channels": [{"name": "sms"}]},
        "content": {"sms": {"text": text}},
        "translations": {"ko": {"sms": {"text": "안녕"}}},
        "samples": [{"name": "one", "parameters": {"name": "Jo"}}],
    })
}

fn channel() -> Value {
    let spec = json!({"medium": "sms", "providers": [{"name": "log", "log": {}}]});
    document("Channel", "sms", &spec)
}

async fn look(bench: &Bench, name: &str) -> Value {
    let template = crate::watch::get(&bench.ctx.stores.templates, "shop", name).unwrap();
    reconcile(template, Arc::clone(&bench.ctx)).await.unwrap();
    bench.server.get("NotificationTemplate", name).unwrap()["status"].clone()
}

#[tokio::test]
async fn a_template_that_renders_and_has_its_channel_is_ready() {
    let mut bench = Bench::embedded();
    bench.declare(&channel());
    bench.declare(&document(
        "NotificationTemplate",
        "hello",
        &spec("Hello {{ name }}"),
    ));
    let status = look(&bench, "hello").await;
    assert_eq!(summary(&status), ["Ready=True Compiled"]);
    assert_eq!(status["observedGeneration"], 1);
    assert_eq!(status["mediums"], json!(["sms"]));
    assert_eq!(status["locales"], json!(["en", "ko"]));
    assert!(
        status["definition"]
            .as_str()
            .unwrap()
            .starts_with("sha256:")
    );
}

#[tokio::test]
async fn what_is_told_already_is_not_written_again() {
    let mut bench = Bench::embedded();
    bench.declare(&channel());
    bench.declare(&document("NotificationTemplate", "hello", &spec("Hello")));
    look(&bench, "hello").await;
    let written = ["PATCH notificationtemplates/hello/status", "POST events"];
    assert_eq!(bench.server.asked(), written);
    // The watch has not told of the status yet; then it has.
    look(&bench, "hello").await;
    let now = bench.server.get("NotificationTemplate", "hello").unwrap();
    crate::fixtures::put(&mut bench.writers.templates, crate::fixtures::read(now));
    look(&bench, "hello").await;
    assert!(bench.server.asked().is_empty());
}

#[tokio::test]
async fn a_missing_channel_is_waited_for_and_a_denied_route_too() {
    let mut bench = Bench::embedded();
    bench.declare(&document("NotificationTemplate", "hello", &spec("Hello")));
    let status = look(&bench, "hello").await;
    let waits = [
        "Ready=False ChannelMissing",
        "Reconciling=True ChannelMissing",
    ];
    assert_eq!(summary(&status), waits);
    let message = status["conditions"][0]["message"].as_str().unwrap();
    assert!(
        message.contains("there is no Channel shop/sms"),
        "{message}"
    );
    // It comes.
    bench.declare(&channel());
    assert_eq!(
        summary(&look(&bench, "hello").await),
        ["Ready=True Compiled"]
    );
    // Another team's, that does not allow it.
    let mut foreign = channel();
    foreign["metadata"]["namespace"] = json!("platform");
    bench.declare(&foreign);
    let mut elsewhere = spec("Hello");
    elsewhere["routing"]["channels"] = json!([{"name": "sms", "namespace": "platform"}]);
    bench.declare(&document("NotificationTemplate", "hello", &elsewhere));
    assert_eq!(summary(&look(&bench, "hello").await), waits);
    foreign["spec"]["allowedNamespaces"] = json!({"from": "Selector", "selector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}}});
    bench.declare(&foreign);
    assert_eq!(
        summary(&look(&bench, "hello").await),
        ["Ready=True Compiled"]
    );
}

#[tokio::test]
async fn what_an_edit_must_cure_is_stalled_and_the_definition_in_force_stays() {
    let mut bench = Bench::embedded();
    bench.declare(&channel());
    bench.declare(&document("NotificationTemplate", "hello", &spec("Hello")));
    let good = look(&bench, "hello").await;
    for (text, reason) in [
        ("{{ name | nonsense }}", "DoesNotRender"),
        ("{{ name", "DoesNotCompile"),
        ("{{ missing }}", "DoesNotRender"),
    ] {
        bench.declare(&document("NotificationTemplate", "hello", &spec(text)));
        let status = look(&bench, "hello").await;
        let expected = [
            format!("Ready=False {reason}"),
            format!("Stalled=True {reason}"),
        ];
        assert_eq!(summary(&status), expected, "{text}");
        assert_eq!(status["definition"], good["definition"]);
    }
}

#[tokio::test]
async fn a_partial_of_another_template_is_waited_for() {
    let mut bench = Bench::embedded();
    bench.declare(&channel());
    let text = "Hello {% include \"brand/footer\" %}";
    bench.declare(&document("NotificationTemplate", "hello", &spec(text)));
    let status = look(&bench, "hello").await;
    let waits = [
        "Ready=False PartialMissing",
        "Reconciling=True PartialMissing",
    ];
    assert_eq!(summary(&status), waits);
    let mut brand = spec("x");
    brand["partials"] = json!({"footer": "Shop"});
    bench.declare(&document("NotificationTemplate", "brand", &brand));
    assert_eq!(
        summary(&look(&bench, "hello").await),
        ["Ready=True Compiled"]
    );
}

#[tokio::test]
async fn a_partial_that_it_should_have_itself_wants_an_edit() {
    let mut bench = Bench::embedded();
    bench.declare(&channel());
    let mut brand = spec("x");
    brand["partials"] = json!({"footer": "{% include \"hello/nme\" %}"});
    bench.declare(&document("NotificationTemplate", "brand", &brand));
    let stalled = ["Ready=False DoesNotCompile", "Stalled=True DoesNotCompile"];
    for text in [
        "{% include 'footr' %}",
        "{% include 'hello/footr' %}",
        "{% include 'brand/footer' %}",
        "{% include 'footr' %}{% include 'brand/missing' %}",
    ] {
        bench.declare(&document("NotificationTemplate", "hello", &spec(text)));
        assert_eq!(summary(&look(&bench, "hello").await), stalled, "{text}");
    }
    // Of one whose name ends as its own does.
    let text = "{% include 'say-hello/name' %}";
    bench.declare(&document("NotificationTemplate", "hello", &spec(text)));
    let waits = summary(&look(&bench, "hello").await);
    assert_eq!(waits[0], "Ready=False PartialMissing");
}

#[tokio::test]
async fn what_it_may_include_is_known_before_what_is_there_is_read() {
    let mut bench = Bench::embedded();
    let text = "Hello {% include \"brand/footer\" %}";
    bench.declare(&document("NotificationTemplate", "hello", &spec(text)));
    let template = crate::watch::get(&bench.ctx.stores.templates, "shop", "hello").unwrap();
    let template = template.0.as_ref().unwrap();
    let read = |stores: &Stores, template: &NotificationTemplate| {
        let known = format!("{:?}", stores.includes);
        // Whatever comes from here on wakes it.
        assert!(known.contains(r#"("shop", "hello"): None"#), "{known}");
        dereference(stores, template)
    };
    let outcome = compile(&bench.ctx.stores, template, read);
    assert_eq!(outcome.includes, None);
}

#[tokio::test]
async fn what_cannot_be_read_is_told_once() {
    let mut bench = Bench::embedded();
    let wrong = document("NotificationTemplate", "new", &json!({"routing": 7}));
    bench.declare(&wrong);
    let template = crate::watch::get(&bench.ctx.stores.templates, "shop", "new").unwrap();
    let Err(invalid) = &template.0 else {
        panic!("it can be read")
    };
    for _ in 0..3 {
        let told = status::tell_unreadable::<NotificationTemplate>(
            &bench.ctx,
            &invalid.metadata,
            &invalid.error,
        );
        told.await.unwrap();
    }
    assert_eq!(
        bench.server.asked(),
        ["PATCH notificationtemplates/new/status"]
    );
    let status = &bench.server.get("NotificationTemplate", "new").unwrap()["status"];
    let stalled = ["Ready=False ReadResource", "Stalled=True ReadResource"];
    assert_eq!(summary(status), stalled);
}

#[tokio::test]
async fn a_status_that_cannot_be_written_is_a_failure() {
    let mut bench = Bench::embedded();
    bench.declare(&document("NotificationTemplate", "hello", &spec("Hello")));
    bench
        .server
        .refuse("PATCH notificationtemplates/hello/status", 403);
    let template = crate::watch::get(&bench.ctx.stores.templates, "shop", "hello").unwrap();
    let error = reconcile(template, Arc::clone(&bench.ctx))
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "WriteStatus");
    assert!(error.to_string().contains("shop/hello"), "{error}");
}
