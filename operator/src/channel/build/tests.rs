//! YAML in, YAML out: a Channel, and everything that is made for it.

use std::collections::BTreeSet;

use herald_crds::Channel;
use serde_json::{Value, json};

use super::*;
use crate::apply::json as json_of;
use crate::channel::dereference::Uids;
use crate::channel::validate::validate;
use crate::fixtures::{pods, read};
use crate::settings::PodAuth;

const REFERENCE: &str = include_str!("../../../../crds/samples/reference/channel-mail.yaml");

fn channel(spec: &Value) -> Channel {
    read(json!({
        "metadata": {"name": "mail", "namespace": "shop", "uid": "u1"},
        "spec": spec,
    }))
}

fn reference() -> Channel {
    let mut document: Value = serde_saphyr::from_str(REFERENCE).unwrap();
    document["metadata"]["uid"] = json!("u1");
    read(document)
}

fn smtp(host: &str) -> Value {
    let smtp = json!({"host": host, "from": "a@shop.example", "credentialsRef": {"name": "login"}});
    json!({"medium": "email", "providers": [{"name": "one", "smtp": smtp}]})
}

fn made(channel: &Channel, pods: &PodSettings) -> Workload {
    let (needed, authorities) = crate::channel::dereference::named(channel);
    let found = Found {
        uids: Some(Uids {
            cluster: "c".to_owned(),
            namespace: "n".to_owned(),
        }),
        secrets: needed.clone(),
        needed,
        authorities,
        ..Found::default()
    };
    let valid = validate(channel, &found).unwrap();
    assert_eq!(valid.missing, None);
    workload(&valid, pods)
}

/// Everything that is made, as YAML.
fn yaml(workload: &Workload) -> String {
    let Workload {
        account,
        config,
        policy,
        budget,
        deployment,
        template: _,
    } = workload;
    let all = [
        json_of(account),
        json_of(config),
        json_of(policy),
        json_of(budget),
        json_of(deployment),
    ];
    let documents: Vec<_> = all
        .iter()
        .map(|d| serde_saphyr::to_string(d).unwrap())
        .collect();
    documents.join("---\n")
}

/// Compares with what is checked in; `UPDATE_GOLDEN=1` writes it anew.
fn golden(name: &str, made: &str) {
    let path = format!(
        "{}/src/channel/build/golden/{name}.yaml",
        env!("CARGO_MANIFEST_DIR")
    );
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(std::path::Path::new(&path).parent().unwrap()).unwrap();
        std::fs::write(&path, made).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        made, expected,
        "{path} is otherwise: see to it, then UPDATE_GOLDEN=1"
    );
}

#[test]
fn the_least_and_the_most_that_can_be_declared() {
    golden(
        "least",
        &yaml(&made(&channel(&smtp("smtp.mail.example")), &pods())),
    );
    let settings = PodSettings {
        auth: PodAuth::Secret,
        ca: Some("-----BEGIN CERTIFICATE-----\n".to_owned()),
        log: Some("debug".to_owned()),
        window: Some(32),
        horizon_seconds: Some(600),
        ..pods()
    };
    golden("most", &yaml(&made(&reference(), &settings)));
}

#[test]
fn a_pod_passes_the_restricted_pod_security_standard() {
    let deployment = json_of(&made(&reference(), &pods()).deployment);
    let pod = &deployment["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(
        pod["securityContext"]["seccompProfile"]["type"],
        "RuntimeDefault"
    );
    let security = &container["securityContext"];
    assert_eq!(security["allowPrivilegeEscalation"], false);
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));
    for forbidden in ["hostNetwork", "hostPID", "hostIPC"] {
        assert_eq!(pod[forbidden], Value::Null);
    }
    let volumes = pod["volumes"].as_array().unwrap();
    assert!(volumes.iter().all(|volume| volume["hostPath"].is_null()));
}

#[test]
fn only_what_pods_read_changes_their_configuration() {
    let base = made(&channel(&smtp("smtp.mail.example")), &pods());
    let name = |workload: &Workload| workload.config.metadata.name.clone().unwrap();
    let with = |change: fn(&mut Value)| {
        let mut spec = smtp("smtp.mail.example");
        change(&mut spec);
        made(&channel(&spec), &pods())
    };
    let unread: [fn(&mut Value); 5] = [
        |spec| spec["description"] = json!("x"),
        |spec| spec["replicas"] = json!(4),
        |spec| spec["autoscaling"] = json!({"maxReplicas": 4}),
        |spec| spec["allowedNamespaces"] = json!({"from": "All"}),
        |spec| spec["topics"] = json!({"deletionPolicy": "Delete"}),
    ];
    for change in unread {
        let made = with(change);
        assert_eq!(name(&made), name(&base));
        assert_eq!(made.template, base.template);
    }
    let read: [fn(&mut Value); 4] = [
        |spec| spec["suspend"] = json!(true),
        |spec| spec["concurrency"] = json!(8),
        |spec| spec["topics"] = json!({"partitions": 2}),
        |spec| spec["providers"][0]["timeoutSeconds"] = json!(3),
    ];
    let mut names = BTreeSet::from([name(&base)]);
    for change in read {
        assert!(names.insert(name(&with(change))));
    }
}

#[test]
fn pods_may_speak_to_their_providers_and_to_nobody_else() {
    let rules = |spec: &Value, pods: &PodSettings| {
        let policy = json_of(&made(&channel(spec), pods).policy);
        let rules = policy["spec"]["egress"].as_array().unwrap().clone();
        assert_eq!(rules[0]["ports"][0]["port"], 53);
        assert_eq!(rules[1]["ports"][0]["port"], 5353);
        assert_eq!(rules[1]["to"], json!([{"namespaceSelector": {}}]));
        assert_eq!(rules[2]["ports"][0]["port"], 6650);
        rules[3..].to_vec()
    };
    let webhook = |webhook: Value| json!({"medium": "webhook", "providers": [{"name": "one", "webhook": webhook}]});
    // Its name says that it is no Service.
    let pods = || PodSettings {
        pulsar_url: "pulsar+ssl://broker.pulsar.example:6650".to_owned(),
        ..pods()
    };
    let inside = PodSettings {
        allow_private_addresses: true,
        ..pods()
    };

    let by_name = rules(&smtp("smtp.mail.example"), &pods());
    assert_eq!(by_name[0]["ports"][0]["port"], 587);
    assert_eq!(by_name[0]["to"][0]["ipBlock"]["cidr"], "0.0.0.0/0");
    let except = by_name[0]["to"][0]["ipBlock"]["except"].as_array().unwrap();
    assert!(except.contains(&json!("10.0.0.0/8")) && except.contains(&json!("169.254.0.0/16")));

    let by_address = rules(&smtp("198.51.100.7"), &pods());
    assert_eq!(
        by_address[0]["to"],
        json!([{"ipBlock": {"cidr": "198.51.100.7/32"}}])
    );

    let fixed = rules(
        &webhook(json!({"url": "http://hooks.shop.example/in"})),
        &pods(),
    );
    assert_eq!(fixed[0]["ports"][0]["port"], 80);
    let of_each = rules(&webhook(json!({})), &pods());
    assert_eq!(of_each[0]["ports"], json!([{"protocol": "TCP"}]));

    // Private ones only if both the Channel and whoever runs the operator allow it.
    let private =
        webhook(json!({"url": "http://hooks.shop.example/in", "allowPrivateAddresses": true}));
    assert!(rules(&private, &pods())[0]["to"].is_array());
    assert!(rules(&private, &inside)[0]["to"].is_null());

    let log = json!({"medium": "sms", "providers": [{"name": "one", "log": {}}]});
    assert!(rules(&log, &pods()).is_empty());
    let mut proxied = log;
    proxied["pod"] =
        json!({"env": [{"name": "HTTPS_PROXY", "value": "http://proxy.corp.example:3128"}]});
    assert_eq!(rules(&proxied, &pods())[0]["ports"][0]["port"], 3128);
}

#[test]
fn a_service_is_reached_whatever_the_port_that_its_pods_listen_on() {
    let namespaces = |spec: &Value, pulsar: &str, private: bool| {
        let settings = PodSettings {
            pulsar_url: pulsar.to_owned(),
            allow_private_addresses: private,
            ..pods()
        };
        let policy = json_of(&made(&channel(spec), &settings).policy);
        let rules = policy["spec"]["egress"].as_array().unwrap().clone();
        let of_all_ports = rules
            .iter()
            .filter(|rule| rule["ports"] == json!([{"protocol": "TCP"}]));
        let names = of_all_ports.map(|rule| {
            let to = rule["to"].as_array().unwrap();
            assert_eq!(to.len(), 1);
            let labels = &to[0]["namespaceSelector"]["matchLabels"];
            let name = labels["kubernetes.io/metadata.name"].as_str().unwrap();
            name.to_owned()
        });
        names.collect::<Vec<_>>()
    };
    let outside = "pulsar://broker.pulsar.example:6650";
    let to = |host: &str| {
        let mut spec = smtp(host);
        spec["providers"][0]["smtp"]["allowPrivateAddresses"] = json!(true);
        spec
    };
    for (host, expected) in [
        ("relay", &["shop"][..]),
        ("relay.mail", &["mail"]),
        ("relay.mail.svc", &["mail"]),
        ("relay.mail.svc.cluster.local", &["mail"]),
        ("relay-0.relay.mail.svc.k8s.corp.example", &["mail"]),
        ("smtp.mail.example", &[]),
        ("10.96.0.7", &[]),
        ("fd00::7", &[]),
    ] {
        assert_eq!(namespaces(&to(host), outside, true), expected, "{host}");
        // Only if both allow it.
        assert_eq!(namespaces(&to(host), outside, false), [""; 0], "{host}");
        assert_eq!(namespaces(&smtp(host), outside, true), [""; 0], "{host}");
    }
    let hook = json!({"url": "http://hooks.shop.svc/in", "allowPrivateAddresses": true});
    let hook = json!({"medium": "webhook", "providers": [{"name": "one", "webhook": hook}]});
    let brokers = "pulsar://one.pulsar.svc:6650,two.pulsar.svc:6650/";
    assert_eq!(namespaces(&hook, brokers, true), ["pulsar", "shop"]);
    let mut proxied = json!({"medium": "sms", "providers": [{"name": "one", "log": {}}]});
    proxied["pod"] = json!({"env": [{"name": "HTTPS_PROXY", "value": "http://squid.egress:80"}]});
    let address = "pulsar://[fd00::1]:6650";
    assert_eq!(namespaces(&proxied, address, false), ["egress"]);
}

#[test]
fn a_dispatcher_can_read_its_configuration() {
    let config = made(&reference(), &pods()).config;
    let data = config.data.unwrap();
    let document: Value = serde_json::from_str(&data["channel.json"]).unwrap();
    let channel = herald_crds::Resource::parse(&document).unwrap();
    assert_eq!(
        (channel.name(), channel.namespace()),
        ("mail", Some("platform"))
    );
    let settings: Value = serde_json::from_str(&data["settings.json"]).unwrap();
    assert_eq!(settings["pulsarTokenFile"], "/etc/herald/pulsar/token");
    assert_eq!(settings["channel"], "/etc/herald/config/channel.json");
}
