//! It is deleted, and what goes with it.

use super::*;

fn deletable() -> Value {
    let mut spec = spec();
    spec["topics"] = json!({"deletionPolicy": "Delete"});
    document("Channel", "mail", &spec)
}

#[tokio::test]
async fn only_a_channel_whose_topics_go_with_it_has_a_finalizer() {
    let mut bench = ready().await;
    look(&bench).await;
    let finalizers = |bench: &Bench| {
        bench.server.get("Channel", "mail").unwrap()["metadata"]["finalizers"].clone()
    };
    assert_eq!(finalizers(&bench), Value::Null);
    bench.declare(&deletable());
    look(&bench).await;
    assert_eq!(finalizers(&bench), json!(["herald.dev/topics"]));
    let mut kept = document("Channel", "mail", &spec());
    kept["metadata"]["finalizers"] = json!(["others.example/mine", "herald.dev/topics"]);
    bench.declare(&kept);
    look(&bench).await;
    assert_eq!(finalizers(&bench), json!(["others.example/mine"]));
}

#[tokio::test]
async fn first_the_pods_go_then_the_topics_when_the_gateways_let_go_then_the_channel() {
    let mut bench = ready().await;
    bench.declare(&deletable());
    look(&bench).await;
    pods_come(&mut bench);
    look(&bench).await;
    let mut deleted = deletable();
    deleted["metadata"]["finalizers"] = json!(["herald.dev/topics"]);
    deleted["metadata"]["deletionTimestamp"] = json!("2026-03-02T11:59:30Z");
    bench.declare(&deleted);
    pulsar(&bench).read_by_somebody(&["herald/shop/ch.mail.events"]);
    // The Deployment.
    assert_eq!(look(&bench).await[0], "Ready=False PodsEnding");
    assert!(bench.server.get("Deployment", "herald-mail").is_none());
    let gone = bench.ctx.stores.deployments.state();
    for deployment in gone {
        let event = kube::runtime::watcher::Event::Delete((*deployment).clone());
        bench.writers.deployments.apply_watcher_event(&event);
    }
    // A gateway still reads.
    assert_eq!(look(&bench).await[0], "Ready=False TopicsInUse");
    assert_eq!(pulsar(&bench).topics().len(), 7);
    pulsar(&bench).read_by_somebody(&[]);
    try_look(&bench).await.unwrap();
    assert!(pulsar(&bench).topics().is_empty());
    assert!(bench.server.get("Channel", "mail").is_none());
}

#[tokio::test]
async fn a_terminating_namespace_does_not_wait_for_pulsar_for_ever() {
    let mut bench = ready().await;
    let mut deleted = deletable();
    deleted["metadata"]["finalizers"] = json!(["herald.dev/topics"]);
    deleted["metadata"]["deletionTimestamp"] = json!("2026-03-02T11:45:00Z");
    bench.declare(&deleted);
    pulsar(&bench).away(true);
    try_look(&bench).await.unwrap_err();
    assert!(bench.server.get("Channel", "mail").is_some());
    let going = json!({"metadata": {"name": "shop", "uid": "uid-of-shop", "deletionTimestamp": "2026-03-02T11:45:00Z"}});
    crate::fixtures::put(&mut bench.writers.namespaces, crate::fixtures::read(going));
    try_look(&bench).await.unwrap();
    assert!(bench.server.get("Channel", "mail").is_none());
}

#[tokio::test]
async fn with_the_last_topic_of_a_namespace_that_goes_its_namespace_in_pulsar_goes() {
    for (goes, left, stays) in [
        (true, None, false),
        (true, Some("ch.lasting.events"), true),
        // Others may come up in it.
        (false, None, true),
    ] {
        let mut bench = ready().await;
        bench.declare(&deletable());
        look(&bench).await;
        let name = "herald/shop".to_owned();
        assert!(pulsar(&bench).namespaces().contains(&name));
        if let Some(left) = left {
            let topic = herald_crds::names::events("shop/lasting");
            assert_eq!(topic.name(), left);
            let plant = bench.ctx.plant.as_ref().unwrap();
            let topic = TopicName::new("herald", &topic);
            plant.admin.create_topic(&topic, 1).await.unwrap();
        }
        if goes {
            let going = json!({"metadata": {"name": "shop", "uid": "uid-of-shop", "deletionTimestamp": "2026-03-02T11:59:00Z"}});
            crate::fixtures::put(&mut bench.writers.namespaces, crate::fixtures::read(going));
        }
        let mut deleted = deletable();
        deleted["metadata"]["finalizers"] = json!(["herald.dev/topics"]);
        deleted["metadata"]["deletionTimestamp"] = json!("2026-03-02T11:59:30Z");
        bench.declare(&deleted);
        try_look(&bench).await.unwrap();
        assert!(bench.server.get("Channel", "mail").is_none());
        assert_eq!(pulsar(&bench).topics().len(), usize::from(left.is_some()));
        let is_there = pulsar(&bench).namespaces().contains(&name);
        assert_eq!(is_there, stays, "it goes: {goes}, {left:?} is left");
    }
}

#[tokio::test]
async fn with_its_last_channel_a_namespace_is_forgotten() {
    let mut bench = ready().await;
    bench.declare(&document("Channel", "other", &spec()));
    look(&bench).await;
    let other = crate::watch::get(&bench.ctx.stores.channels, "shop", "other").unwrap();
    reconcile(other, Arc::clone(&bench.ctx)).await.unwrap();
    let plant = bench.ctx.plant.as_ref().unwrap();
    assert_eq!(plant.namespaces(), 1);
    plant.forget("shop/other");
    assert_eq!(plant.namespaces(), 1);
    plant.forget("shop/mail");
    assert_eq!(plant.namespaces(), 0);
}
