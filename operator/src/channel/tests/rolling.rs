//! Its pods: how many there are, and how they are replaced.

use super::*;

#[tokio::test]
async fn the_number_of_pods_is_the_channels_whoever_changes_the_deployment() {
    let mut bench = ready().await;
    look(&bench).await;
    pods_come(&mut bench);
    look(&bench).await;
    bench.server.change("Deployment", "herald-mail", |d| {
        d["spec"]["replicas"] = json!(7);
    });
    bench.tell();
    bench.server.asked();
    look(&bench).await;
    assert_eq!(bench.server.wrote()[..1], ["PATCH deployments/herald-mail"]);
    let replicas = |bench: &Bench| {
        bench.server.get("Deployment", "herald-mail").unwrap()["spec"]["replicas"].clone()
    };
    assert_eq!(replicas(&bench), 2);
    let mut more = spec();
    more["replicas"] = json!(3);
    bench.declare(&document("Channel", "mail", &more));
    look(&bench).await;
    assert_eq!(replicas(&bench), 3);
}

#[tokio::test]
async fn a_roll_keeps_the_number_of_pods_also_when_making_them_failed_halfway() {
    let mut bench = ready().await;
    let scaling = format!(
        "PATCH deployments/herald-mail as {}",
        herald_crds::names::SCALE_FIELD_MANAGER
    );
    bench.server.refuse(&scaling, 500);
    try_look(&bench).await.unwrap_err();
    bench.server.refuse(&scaling, 0);
    bench.tell();
    pods_come(&mut bench);
    assert_eq!(look(&bench).await, ["Ready=True Delivering"]);
    let mut faster = spec();
    faster["rateLimit"] = json!({"count": 10});
    bench.declare(&document("Channel", "mail", &faster));
    assert_eq!(look(&bench).await[0], "Ready=True RollingOut");
    let deployment = bench.server.get("Deployment", "herald-mail").unwrap();
    assert_eq!(deployment["spec"]["replicas"], 2);
}

#[tokio::test]
async fn a_suspended_channel_has_no_pods_and_one_that_becomes_so_gives_back_first() {
    let mut bench = ready().await;
    look(&bench).await;
    pods_come(&mut bench);
    look(&bench).await;
    let mut suspended = spec();
    suspended["suspend"] = json!(true);
    bench.declare(&document("Channel", "mail", &suspended));
    look(&bench).await;
    let replicas = |bench: &Bench| {
        bench.server.get("Deployment", "herald-mail").unwrap()["spec"]["replicas"].clone()
    };
    assert_eq!(replicas(&bench), 2);
    // The new pods have been there for an hour.
    pods_come(&mut bench);
    look(&bench).await;
    assert_eq!(replicas(&bench), 0);
    pods_come(&mut bench);
    assert_eq!(look(&bench).await, ["Ready=True Suspended"]);
    bench.declare(&document("Channel", "mail", &spec()));
    look(&bench).await;
    assert_eq!(replicas(&bench), 2);
}

#[tokio::test]
async fn a_suspended_channel_whose_pods_cannot_give_back_has_none() {
    let statuses = [
        // None has ever served.
        json!({"replicas": 2, "updatedReplicas": 2}),
        // New ones never come, and those of before go on sending.
        json!({"replicas": 3, "updatedReplicas": 1, "availableReplicas": 2, "conditions": [
            {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"},
        ]}),
        // One of those that know that it is suspended fails; the other has had its time.
        json!({"replicas": 2, "updatedReplicas": 2, "availableReplicas": 1, "conditions": [
            {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable", "lastUpdateTime": "2026-03-02T11:58:30Z"},
        ]}),
    ];
    for status in statuses {
        let mut bench = ready().await;
        look(&bench).await;
        let mut suspended = spec();
        suspended["suspend"] = json!(true);
        bench.declare(&document("Channel", "mail", &suspended));
        pods_come(&mut bench);
        look(&bench).await;
        bench.server.change("Deployment", "herald-mail", |d| {
            d["spec"]["replicas"] = json!(2);
            d["status"] = status.clone();
            d["status"]["observedGeneration"] = d["metadata"]["generation"].clone();
        });
        bench.tell();
        assert_eq!(look(&bench).await, ["Ready=True Suspended"], "{status}");
        let deployment = bench.server.get("Deployment", "herald-mail").unwrap();
        assert_eq!(deployment["spec"]["replicas"], 0, "{status}");
    }
}

#[tokio::test]
async fn a_channel_can_be_suspended_whatever_is_wrong_with_it() {
    let mut wrong = spec();
    wrong["providers"][0]["webhook"] = json!({});
    let mut without = spec();
    without["providers"][0]["smtp"]["credentialsRef"]["name"] = json!("another");
    let ways = [
        (wrong, "Ready=False InvalidSpec"),
        (without, "Ready=False SecretMissing"),
    ];
    for (mut spec, reason) in ways {
        let mut bench = ready().await;
        look(&bench).await;
        pods_come(&mut bench);
        look(&bench).await;
        let before = bench.server.get("Deployment", "herald-mail").unwrap();
        bench.declare(&document("Channel", "mail", &spec));
        assert_eq!(look(&bench).await[0], reason);
        let deployment = |bench: &Bench| bench.server.get("Deployment", "herald-mail").unwrap();
        assert_eq!(deployment(&bench)["spec"], before["spec"]);
        spec["suspend"] = json!(true);
        bench.declare(&document("Channel", "mail", &spec));
        assert_eq!(look(&bench).await[0], reason);
        let mut stopped = before["spec"].clone();
        stopped["replicas"] = json!(0);
        assert_eq!(deployment(&bench)["spec"], stopped);
        pods_come(&mut bench);
        assert_eq!(look(&bench).await[0], reason);
        let told = bench.server.get("Channel", "mail").unwrap();
        assert_eq!(told["status"]["replicas"], 0);
        bench.server.asked();
        look(&bench).await;
        assert_eq!(bench.server.wrote(), [""; 0]);
    }
}

#[tokio::test]
async fn a_channel_can_be_suspended_while_pulsar_is_away() {
    let mut bench = ready().await;
    look(&bench).await;
    pods_come(&mut bench);
    look(&bench).await;
    pulsar(&bench).away(true);
    pass(Duration::from_mins(2)).await;
    let replicas = |bench: &Bench| {
        bench.server.get("Deployment", "herald-mail").unwrap()["spec"]["replicas"].clone()
    };
    try_look(&bench).await.unwrap_err();
    assert_eq!(replicas(&bench), 2);
    let mut suspended = spec();
    suspended["suspend"] = json!(true);
    bench.declare(&document("Channel", "mail", &suspended));
    try_look(&bench).await.unwrap_err();
    assert_eq!(replicas(&bench), 0);
}

#[tokio::test]
async fn a_new_configuration_replaces_the_old_one_when_the_pods_have_it() {
    let mut bench = ready().await;
    look(&bench).await;
    pods_come(&mut bench);
    look(&bench).await;
    let configs = |bench: &Bench| {
        let all = bench.server.all();
        all.iter()
            .filter(|object| object["kind"] == "ConfigMap")
            .count()
    };
    let mut faster = spec();
    faster["rateLimit"] = json!({"count": 10});
    bench.declare(&document("Channel", "mail", &faster));
    let changing = ["Ready=True RollingOut", "Reconciling=True RollingOut"];
    assert_eq!(look(&bench).await, changing);
    assert_eq!(configs(&bench), 2);
    pods_come(&mut bench);
    assert_eq!(look(&bench).await, ["Ready=True Delivering"]);
    assert_eq!(configs(&bench), 1);
}

#[tokio::test]
async fn what_pods_do_not_read_replaces_none() {
    let mut bench = ready().await;
    look(&bench).await;
    pods_come(&mut bench);
    look(&bench).await;
    let template = |bench: &Bench| {
        bench.server.get("Deployment", "herald-mail").unwrap()["spec"]["template"].clone()
    };
    let before = template(&bench);
    let mut other = spec();
    other["description"] = json!("another");
    other["allowedNamespaces"] = json!({"from": "All"});
    other["topics"] = json!({"deletionPolicy": "Keep"});
    bench.declare(&document("Channel", "mail", &other));
    assert_eq!(look(&bench).await, ["Ready=True Delivering"]);
    assert_eq!(template(&bench), before);
}

#[tokio::test]
async fn a_sixth_channel_waits_for_its_turn_to_replace_its_pods() {
    let mut bench = ready().await;
    look(&bench).await;
    pods_come(&mut bench);
    look(&bench).await;
    for n in 0..5 {
        let rolling = json!({
            "metadata": {"name": format!("herald-c{n}"), "namespace": "shop", "generation": 1, "labels": {"herald.dev/channel": format!("c{n}")}},
            "spec": {"replicas": 2, "selector": {}, "template": {}},
            "status": {"observedGeneration": 1, "replicas": 3, "updatedReplicas": 1, "availableReplicas": 2},
        });
        crate::fixtures::put(
            &mut bench.writers.deployments,
            crate::fixtures::read(rolling),
        );
    }
    let mut faster = spec();
    faster["rateLimit"] = json!({"count": 10});
    bench.declare(&document("Channel", "mail", &faster));
    let waits = [
        "Ready=True WaitingForTurn",
        "Reconciling=True WaitingForTurn",
    ];
    assert_eq!(look(&bench).await, waits);
    // None of its own serves any more.
    bench.server.change("Deployment", "herald-mail", |d| {
        d["status"]["availableReplicas"] = json!(0);
    });
    bench.tell();
    let none = [
        "Ready=False PodsUnavailable",
        "Reconciling=True PodsUnavailable",
    ];
    assert_eq!(look(&bench).await, none);
    let done = json!({
        "metadata": {"name": "herald-c0", "namespace": "shop", "generation": 1, "labels": {"herald.dev/channel": "c0"}},
        "spec": {"replicas": 2, "selector": {}, "template": {}},
        "status": {"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2},
    });
    crate::fixtures::put(&mut bench.writers.deployments, crate::fixtures::read(done));
    pods_come(&mut bench);
    assert_eq!(look(&bench).await[0], "Ready=True RollingOut");
}

#[tokio::test]
async fn pods_that_are_replaced_reach_their_provider_until_they_are_gone() {
    let mut bench = ready().await;
    look(&bench).await;
    bench.tell();
    pods_come(&mut bench);
    look(&bench).await;
    let ports = |bench: &Bench| {
        let policy = bench.server.get("NetworkPolicy", "herald-mail").unwrap();
        let rules = policy["spec"]["egress"].as_array().unwrap().clone();
        let ports = rules
            .iter()
            .filter_map(|rule| rule["ports"][0]["port"].as_u64());
        ports
            .filter(|port| ![53, 5353, 6650].contains(port))
            .collect::<Vec<_>>()
    };
    let [usual] = ports(&bench)[..] else {
        panic!("one provider: {:?}", ports(&bench));
    };
    let mut changed = spec();
    changed["providers"][0]["smtp"]["port"] = json!(2525);
    bench.declare(&document("Channel", "mail", &changed));
    look(&bench).await;
    assert_eq!(ports(&bench), [2525, usual]);
    bench.tell();
    assert_eq!(look(&bench).await[0], "Ready=True RollingOut");
    assert_eq!(ports(&bench), [2525, usual]);
    // What somebody else lets out is not kept for that.
    let rule = json!({"ports": [{"port": 25, "protocol": "TCP"}]});
    for expected in [vec![2525], vec![2525]] {
        bench
            .server
            .change("NetworkPolicy", "herald-mail", |policy| {
                let egress = policy["spec"]["egress"].as_array_mut().unwrap();
                egress.push(rule.clone());
            });
        bench.tell();
        look(&bench).await;
        assert_eq!(ports(&bench), expected);
    }
    let mut back = changed.clone();
    back["providers"][0]["smtp"]["port"] = json!(usual);
    bench.declare(&document("Channel", "mail", &back));
    look(&bench).await;
    assert_eq!(ports(&bench), [usual, 2525]);
    bench.declare(&document("Channel", "mail", &changed));
    bench.tell();
    look(&bench).await;
    assert_eq!(ports(&bench), [2525, usual]);
    // All are replaced, and those of before have their time to end.
    let replaced = |bench: &mut Bench, since: &str| {
        pods_come(bench);
        bench
            .server
            .change("Deployment", "herald-mail", |deployment| {
                deployment["status"]["conditions"][0]["lastUpdateTime"] = json!(since);
            });
        bench.tell();
    };
    replaced(&mut bench, "2026-03-02T11:59:50Z");
    let again = try_look(&bench).await.unwrap();
    assert_eq!(again, Action::requeue(Duration::from_secs(31)));
    assert_eq!(ports(&bench), [2525, usual]);
    replaced(&mut bench, "2026-03-02T11:59:20Z");
    look(&bench).await;
    assert_eq!(ports(&bench), [2525]);
}

#[tokio::test]
async fn pods_that_kubernetes_refuses_are_told_of_in_its_words() {
    let mut bench = ready().await;
    look(&bench).await;
    pods_come(&mut bench);
    let told = |bench: &mut Bench, available: i32| {
        bench.server.change("Deployment", "herald-mail", |d| {
            d["spec"]["replicas"] = json!(2);
            d["status"] = json!({
                "observedGeneration": d["metadata"]["generation"],
                "replicas": available, "updatedReplicas": available, "availableReplicas": available,
                "conditions": [
                    {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"},
                    {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota: small"},
                ],
            });
        });
        bench.tell();
    };
    told(&mut bench, 1);
    assert_eq!(look(&bench).await, ["Ready=True PodsRefused"]);
    assert!(message(&bench).ends_with("exceeded quota: small"));
    told(&mut bench, 0);
    let none = ["Ready=False PodsRefused", "Reconciling=True PodsRefused"];
    assert_eq!(look(&bench).await, none);
}
