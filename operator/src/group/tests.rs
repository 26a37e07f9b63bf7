//! One scenario for each path, against an API server that is a map.

use serde_json::{Value, json};

use super::*;
use crate::fixtures::{Bench, document};
use crate::status::summary;

async fn look(bench: &Bench, name: &str) -> Value {
    let group = crate::watch::get(&bench.ctx.stores.groups, "shop", name).unwrap();
    reconcile(group, Arc::clone(&bench.ctx)).await.unwrap();
    bench.server.get("RecipientGroup", name).unwrap()["status"].clone()
}

fn group(name: &str, members: &Value) -> Value {
    document("RecipientGroup", name, &json!({"members": members}))
}

#[tokio::test]
async fn a_group_waits_for_its_groups_and_a_circle_says_which() {
    let mut bench = Bench::embedded();
    bench.declare(&group(
        "vip",
        &json!([{"recipient": "jo"}, {"group": "board"}]),
    ));
    let status = look(&bench, "vip").await;
    let waits = ["Ready=False GroupMissing", "Reconciling=True GroupMissing"];
    assert_eq!(summary(&status), waits);
    bench.declare(&group("board", &json!([{"recipient": "kim"}])));
    assert_eq!(summary(&look(&bench, "vip").await), ["Ready=True Resolved"]);
    bench.declare(&group("board", &json!([{"group": "vip"}])));
    for name in ["vip", "board"] {
        let status = look(&bench, name).await;
        assert_eq!(
            summary(&status),
            ["Ready=False Circle", "Stalled=True Circle"]
        );
        let message = status["conditions"][0]["message"].as_str().unwrap();
        assert!(message.contains("→"), "{message}");
    }
}

#[tokio::test]
async fn what_an_edit_must_cure_is_stalled() {
    let mut bench = Bench::embedded();
    let twice = json!([{"recipient": "jo"}, {"recipient": "jo"}]);
    bench.declare(&group("vip", &twice));
    let status = look(&bench, "vip").await;
    let stalled = ["Ready=False InvalidSpec", "Stalled=True InvalidSpec"];
    assert_eq!(summary(&status), stalled);
    let message = status["conditions"][0]["message"].as_str().unwrap();
    assert!(message.contains("/spec/members/1"), "{message}");
}
