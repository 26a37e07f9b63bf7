//! The chart: what `helm` makes of it with every file of values in `ci/`. Needs `helm`, which `HERALD_HELM` names.
//!
//! - This file: how it is rendered, and what has to be true of every rendering.
//! - [`docs`]: what the documentation says to install with, and what alerts are about.
//! - [`values`]: which values are taken, and what is said of those that are not.

#![allow(clippy::unwrap_used, reason = "these are tests: what fails is a panic")]

mod docs;
mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use herald_crds::{Kind, crd};
use herald_dispatcher::catalog::yaml;
use serde_json::{Map, Value, json};

/// The repository.
fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The chart.
fn chart() -> PathBuf {
    repository().join("charts/herald")
}

/// The files of values that the chart is tried with.
fn value_files() -> Vec<PathBuf> {
    let folder = fs::read_dir(chart().join("ci")).unwrap();
    let mut files: Vec<_> = folder.map(|entry| entry.unwrap().path()).collect();
    files.push(chart().join("values-dev.yaml"));
    files.sort();
    assert!(files.len() > 4, "{files:?}");
    files
}

/// Without a cluster `helm` takes one of its own age for granted; this is the oldest that the chart is for.
const KUBERNETES: &str = "--kube-version=1.33.0";

fn helm(arguments: &[&str], values: &Path) -> Output {
    let program = std::env::var_os("HERALD_HELM").unwrap_or_else(|| "helm".into());
    let mut command = Command::new(&program);
    command
        .args(arguments)
        .arg(KUBERNETES)
        .arg(chart())
        .arg("--values")
        .arg(values);
    let output = command.output();
    output.unwrap_or_else(|error| panic!("{}: {error}; scripts/need kubernetes", program.display()))
}

/// Every object, in namespace `herald` of release `herald`, hooks and tests included.
fn render(values: &Path) -> Vec<Value> {
    let output = helm(&["template", "herald", "--namespace", "herald"], values);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", values.display());
    read(&output.stdout)
}

fn read(bytes: &[u8]) -> Vec<Value> {
    let documents = yaml::read(bytes).unwrap();
    let objects = documents.into_iter().map(|document| document.value);
    objects.filter(|object| !object.is_null()).collect()
}

/// What each file of values makes, and which file.
fn renderings() -> &'static [(String, Vec<Value>)] {
    static RENDERINGS: LazyLock<Vec<(String, Vec<Value>)>> = LazyLock::new(|| {
        let files = value_files();
        let named = files.iter().map(|file| {
            let name = file.file_stem().unwrap().to_string_lossy().into_owned();
            (name, render(file))
        });
        named.collect()
    });
    &RENDERINGS
}

fn kind(object: &Value) -> &str {
    object["kind"].as_str().unwrap()
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap()
}

fn of_kind<'a>(objects: &'a [Value], wanted: &str) -> Vec<&'a Value> {
    objects
        .iter()
        .filter(|object| kind(object) == wanted)
        .collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The pods that an object is or makes: their labels and what they are.
fn pod(object: &Value) -> Option<(&Value, &Value)> {
    match kind(object) {
        "Deployment" | "Job" => {
            let template = &object["spec"]["template"];
            Some((&template["metadata"]["labels"], &template["spec"]))
        }
        "Pod" => Some((&object["metadata"]["labels"], &object["spec"])),
        _ => None,
    }
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    list(&pod["initContainers"])
        .iter()
        .chain(list(&pod["containers"]))
}

#[test]
fn helm_finds_nothing_to_complain_about() {
    for values in value_files() {
        let output = helm(&["lint", "--strict", "--quiet"], &values);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}: {said}", values.display());
    }
}

#[test]
fn no_object_is_there_twice_and_each_is_in_a_namespace_if_its_kind_has_one() {
    let of_the_cluster = [
        "ClusterRole",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
    ];
    for (values, objects) in renderings() {
        let mut seen = BTreeSet::new();
        for object in objects {
            let namespace = &object["metadata"]["namespace"];
            let what = format!("{values}: {} {namespace} {}", kind(object), name(object));
            assert_eq!(
                namespace.is_null(),
                of_the_cluster.contains(&kind(object)),
                "{what}"
            );
            assert!(seen.insert(what.clone()), "twice: {what}");
            let labels = &object["metadata"]["labels"];
            assert_eq!(labels["app.kubernetes.io/part-of"], "herald", "{what}");
        }
    }
}

/// The rules: <https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted>, and a root that cannot be written.
#[test]
fn every_pod_is_one_that_the_restricted_standard_lets_in() {
    for (values, objects) in renderings() {
        let mut pods = 0;
        for object in objects {
            let Some((_, pod)) = pod(object) else {
                continue;
            };
            let what = format!("{values}: {} {}", kind(object), name(object));
            pods += 1;
            for field in ["hostNetwork", "hostPID", "hostIPC"] {
                assert!(pod[field].is_null(), "{what}: {field}");
            }
            let context = &pod["securityContext"];
            let whom = match values.as_str() {
                "no-rbac-values" => [Value::Null, Value::Null, Value::Null],
                "everything-values" => [10001, 10002, 10003].map(Value::from),
                _ => [65532, 65532, 65532].map(Value::from),
            };
            let fields = ["runAsUser", "runAsGroup", "fsGroup"];
            assert_eq!(fields.map(|field| context[field].clone()), whom, "{what}");
            assert_eq!(context["runAsNonRoot"], true, "{what}");
            assert_eq!(
                context["seccompProfile"]["type"], "RuntimeDefault",
                "{what}"
            );
            for container in containers(pod) {
                let expected = json!({
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "runAsNonRoot": true,
                    "capabilities": {"drop": ["ALL"]},
                    "seccompProfile": {"type": "RuntimeDefault"},
                });
                assert_eq!(container["securityContext"], expected, "{what}");
                for port in list(&container["ports"]) {
                    assert!(port["hostPort"].is_null(), "{what}");
                }
            }
            for volume in list(&pod["volumes"]) {
                let taken = volume
                    .as_object()
                    .unwrap()
                    .keys()
                    .find(|key| *key != "name");
                let allowed = ["emptyDir", "secret", "projected", "persistentVolumeClaim"];
                assert!(
                    allowed.contains(&taken.unwrap().as_str()),
                    "{what}: {volume}"
                );
            }
        }
        assert!(pods >= 2, "{values} makes {pods} pods");
    }
}

#[test]
fn every_container_says_what_it_needs_and_what_runs_says_how_it_is() {
    for (values, objects) in renderings() {
        for object in objects {
            let Some((_, pod)) = pod(object) else {
                continue;
            };
            let what = format!("{values}: {} {}", kind(object), name(object));

            assert!(pod["automountServiceAccountToken"].is_boolean(), "{what}");
            for container in containers(pod) {
                let resources = &container["resources"];
                for needed in ["/requests/cpu", "/requests/memory", "/limits/memory"] {
                    assert!(resources.pointer(needed).is_some(), "{what}: {needed}");
                }
                let program = container["command"][0].as_str().unwrap();
                assert!(program.starts_with("/usr/bin/herald"), "{what}: {program}");
                assert_eq!(
                    container["image"],
                    list(&pod["containers"])[0]["image"],
                    "{what}"
                );
                if kind(object) != "Deployment" {
                    continue;
                }
                for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
                    let port = &container[probe]["httpGet"]["port"];
                    let named = list(&container["ports"])
                        .iter()
                        .any(|has| &has["name"] == port);
                    assert!(named, "{what}: {probe} asks port {port}");
                }
                assert!(
                    !list(&pod["topologySpreadConstraints"]).is_empty(),
                    "{what}"
                );
            }
            let volumes: BTreeSet<_> = list(&pod["volumes"])
                .iter()
                .map(|v| v["name"].as_str())
                .collect();
            let mounts = containers(pod).flat_map(|container| list(&container["volumeMounts"]));
            let mounted: BTreeSet<_> = mounts.map(|mount| mount["name"].as_str()).collect();
            assert_eq!(volumes, mounted, "{what}");
        }
    }
}

#[test]
fn no_role_has_a_wildcard_or_what_would_give_it_more() {
    for (values, objects) in renderings() {
        for object in of_kind(objects, "Role")
            .into_iter()
            .chain(of_kind(objects, "ClusterRole"))
        {
            let what = format!("{values}: {}", name(object));
            for rule in list(&object["rules"]) {
                for part in rule.as_object().unwrap().values().flat_map(list) {
                    assert!(!part.as_str().unwrap().contains('*'), "{what}: {rule}");
                }
                let verbs: Vec<_> = list(&rule["verbs"])
                    .iter()
                    .filter_map(Value::as_str)
                    .collect();
                for forbidden in ["escalate", "bind", "impersonate"] {
                    assert!(!verbs.contains(&forbidden), "{what}: {rule}");
                }
                let resources = list(&rule["resources"]);
                if kind(object) == "ClusterRole" && resources.contains(&json!("secrets")) {
                    // Who may list may read: no content is ever asked for, and no single one either.
                    assert_eq!(verbs, ["list", "watch"], "{what}");
                }
                assert!(!resources.contains(&json!("pods/exec")), "{what}");
            }
        }
    }
}

#[test]
fn every_binding_binds_a_role_and_an_account_that_are_there() {
    for (values, objects) in renderings() {
        let names = |wanted: &str| -> BTreeSet<&str> {
            of_kind(objects, wanted).into_iter().map(name).collect()
        };
        let accounts = names("ServiceAccount");
        let bindings = of_kind(objects, "RoleBinding").into_iter();
        for binding in bindings.chain(of_kind(objects, "ClusterRoleBinding")) {
            let what = format!("{values}: {}", name(binding));
            let role = &binding["roleRef"];
            let known = names(role["kind"].as_str().unwrap());
            assert!(
                known.contains(role["name"].as_str().unwrap()),
                "{what}: {role}"
            );
            for subject in list(&binding["subjects"]) {
                assert_eq!(subject["namespace"], "herald", "{what}");
                assert!(
                    accounts.contains(subject["name"].as_str().unwrap()),
                    "{what}: {subject}"
                );
            }
        }
    }
}

#[test]
fn without_rbac_no_account_and_no_right_is_made_and_the_given_ones_are_used() {
    let (_, objects) = renderings()
        .iter()
        .find(|(values, _)| values == "no-rbac-values")
        .unwrap();
    for object in objects {
        let made = kind(object);
        assert!(
            made != "ServiceAccount" && !made.contains("Role"),
            "{made} {}",
            name(object)
        );
    }
    let accounts: BTreeMap<_, _> = objects
        .iter()
        .filter_map(|object| Some((kind(object), name(object), pod(object)?.1)))
        .filter(|(kind, _, _)| *kind != "Pod")
        .map(|(_, name, pod)| (name, pod["serviceAccountName"].as_str().unwrap()))
        .collect();
    let names = ["herald-gateway", "herald-operator", "herald-uninstall"];
    assert_eq!(accounts, names.map(|name| (name, name)).into());
}

#[test]
fn what_comes_and_goes_is_placed_as_the_operator_is() {
    for (values, objects) in renderings() {
        let placed = |object| {
            let pod: &Value = pod(object).unwrap().1;
            let fields = [
                "nodeSelector",
                "tolerations",
                "affinity",
                "priorityClassName",
            ];
            fields.map(|field| pod[field].clone())
        };
        let operator = of_kind(objects, "Deployment")
            .into_iter()
            .find(|object| name(object).ends_with("-operator"));
        let operator = placed(operator.unwrap());
        let complete = operator.iter().all(|field| !field.is_null());
        assert_eq!(complete, values == "everything-values", "{values}");
        let hooks = [of_kind(objects, "Job"), of_kind(objects, "Pod")].concat();
        assert!(!hooks.is_empty(), "{values}");
        for hook in hooks {
            assert_eq!(placed(hook), operator, "{values}: {}", name(hook));
        }
    }
}

#[test]
fn every_selector_finds_its_pods_and_no_others() {
    fn matches(labels: &Value, selector: &Value) -> bool {
        let wanted = selector.as_object().unwrap();
        wanted.iter().all(|(key, value)| &labels[key] == value)
    }
    for (values, objects) in renderings() {
        let pods: Vec<_> = objects
            .iter()
            .filter_map(|object| Some((object, pod(object)?.0)))
            .collect();
        let selectors = objects.iter().filter_map(|object| {
            let spec = &object["spec"];
            match kind(object) {
                "Service" => Some((object, &spec["selector"])),
                "PodDisruptionBudget" | "Deployment" => {
                    Some((object, &spec["selector"]["matchLabels"]))
                }
                "NetworkPolicy" => Some((object, &spec["podSelector"]["matchLabels"])),
                _ => None,
            }
        });
        for (object, selector) in selectors {
            let found: Vec<_> = pods
                .iter()
                .filter(|(_, labels)| matches(labels, selector))
                .collect();
            let what = format!("{values}: {} {}", kind(object), name(object));
            let [(owner, _)] = found[..] else {
                panic!("{what} selects {} pods", found.len());
            };
            let component = &object["metadata"]["labels"]["app.kubernetes.io/component"];
            assert_eq!(
                &owner["metadata"]["labels"]["app.kubernetes.io/component"], component,
                "{what}"
            );
        }
    }
}

#[test]
fn the_definitions_are_those_of_the_types() {
    for (values, objects) in renderings() {
        let rendered = of_kind(objects, "CustomResourceDefinition");
        if values == "embedded-kept-values" {
            assert!(rendered.is_empty(), "crds.enabled is off");
            continue;
        }
        assert_eq!(rendered.len(), Kind::ALL.len(), "{values}");
        for kind in Kind::ALL {
            let expected = crd::definition(kind);
            let found = rendered.iter().find(|found| name(found) == name(expected));
            let mut found = (**found.unwrap()).clone();
            let metadata = found["metadata"].as_object_mut().unwrap();
            metadata.remove("labels").unwrap();
            let annotations = metadata.remove("annotations").unwrap_or_default();
            let kept = annotations["helm.sh/resource-policy"] == "keep";
            assert_eq!(
                kept,
                ["minimal-values", "cluster-values", "no-rbac-values"].contains(&values.as_str()),
                "{values}"
            );
            assert_eq!(&found, expected, "{values}");
        }
    }
}

#[test]
fn the_key_that_signs_links_is_made_once_and_outlives_the_release() {
    let objects = render(&chart().join("ci/minimal-values.yaml"));
    let [secret] = of_kind(&objects, "Secret")[..] else {
        panic!("there should be one Secret");
    };
    assert_eq!(
        secret["metadata"]["annotations"]["helm.sh/resource-policy"],
        "keep"
    );
    // 32 bytes in base64.
    assert_eq!(secret["data"]["key"].as_str().unwrap().len(), 44);
    let given = render(&chart().join("ci/everything-values.yaml"));
    assert!(
        of_kind(&given, "Secret").is_empty(),
        "one of your own is named"
    );
}

#[test]
fn a_program_is_told_only_what_it_can_be_told() {
    let gateway = settings::<herald_dispatcher::server::settings::Settings>();
    let operator = settings::<herald_operator::settings::Settings>();
    for (values, objects) in renderings() {
        for object in of_kind(objects, "Deployment") {
            let (_, pod) = pod(object).unwrap();
            for container in containers(pod) {
                let known = match container["command"][0].as_str().unwrap() {
                    "/usr/bin/herald-dispatcher" => &gateway,
                    "/usr/bin/herald-operator" => &operator,
                    // Of the one that does everything the flags are tried by running it.
                    _ => continue,
                };
                for variable in list(&container["env"]) {
                    let variable = variable["name"].as_str().unwrap();
                    let is_ours = variable.starts_with("HERALD_") && variable != "HERALD_LOG";
                    let what = format!("{values}: {}", name(object));
                    assert!(!is_ours || known.contains(variable), "{what}: {variable}");
                }
            }
        }
    }
}

/// The environment variables that a program reads.
fn settings<T: clap::Args>() -> BTreeSet<String> {
    let command = T::augment_args(clap::Command::new("settings"));
    let variables = command.get_arguments().filter_map(clap::Arg::get_env);
    variables
        .map(|name| name.to_string_lossy().into_owned())
        .collect()
}

#[test]
fn traces_are_sent_where_the_values_say_and_the_policy_lets_them_out() {
    let egress = |endpoint: &str| {
        let file = tempfile::NamedTempFile::new().unwrap();
        let values = json!({
            "broker": "embedded",
            "image": {"registry": "registry.example"},
            "networkPolicy": {"enabled": true},
            "traces": {"otlpEndpoint": endpoint},
        });
        fs::write(file.path(), values.to_string()).unwrap();
        let objects = render(file.path());
        let operator = |wanted| {
            let found = of_kind(&objects, wanted).into_iter();
            let mut found = found.filter(|object| name(object) == "herald-operator");
            found.next().unwrap().clone()
        };
        let deployment = operator("Deployment");
        let (_, pod) = pod(&deployment).unwrap();
        let env = list(&pod["containers"][0]["env"]);
        let told = env
            .iter()
            .find(|variable| variable["name"] == "OTEL_EXPORTER_OTLP_ENDPOINT");
        let told = told.map(|variable| variable["value"].as_str().unwrap().to_owned());
        assert_eq!(told.unwrap_or_default(), endpoint);
        let policy = operator("NetworkPolicy");
        let rules = list(&policy["spec"]["egress"]).iter();
        rules
            .filter(|rule| rule.get("to").is_none())
            .flat_map(|rule| list(&rule["ports"]))
            .filter_map(|port| port["port"].as_u64())
            .collect::<BTreeSet<_>>()
    };
    let usual = egress("");
    for (endpoint, port) in [
        ("http://collector.monitoring.svc:4318", 4318),
        ("https://traces.example:9443/otlp", 9443),
        ("http://traces.example", 80),
    ] {
        let let_out = egress(endpoint);
        let further: Vec<_> = let_out.difference(&usual).copied().collect();
        assert_eq!(further, [port], "{endpoint}");
    }
}

#[test]
fn the_api_is_open_to_those_alone_who_are_named() {
    // Where metrics have a port of their own, and where not.
    for (broker, further) in [("pulsar", 0), ("embedded", 1)] {
        let peers = |named: &[&str]| {
            let pods = named.iter();
            let pods = pods.map(|app| json!({"podSelector": {"matchLabels": {"app": app}}}));
            pods.collect::<Vec<_>>()
        };
        let let_in = |api: &[&str], metrics: &[&str]| {
            let file = tempfile::NamedTempFile::new().unwrap();
            let values = json!({
                "broker": broker,
                "image": {"registry": "registry.example"},
                "pulsar": {"existingSecret": "pulsar"},
                "postgresql": {"existingSecret": "postgresql"},
                "networkPolicy": {
                    "enabled": true, "apiFrom": peers(api), "metricsFrom": peers(metrics),
                },
            });
            fs::write(file.path(), values.to_string()).unwrap();
            let objects = render(file.path());
            let policies = of_kind(&objects, "NetworkPolicy").into_iter();
            let mut policies = policies.filter(|object| name(object) == "herald-gateway");
            let rules = policies.next().unwrap()["spec"]["ingress"].clone();
            let to_api = |rule: &&Value| list(&rule["ports"]).iter().any(|p| p["port"] == "http");
            let rules: Vec<_> = list(&rules).iter().filter(to_api).cloned().collect();
            assert_eq!(rules.len(), 1, "{broker}: {rules:?}");
            rules[0].get("from").map(|from| list(from).to_vec())
        };
        assert_eq!(let_in(&[], &[]), None, "{broker}");
        assert_eq!(let_in(&[], &["prometheus"]), None, "{broker}");
        let shop = let_in(&["shop"], &[]).unwrap();
        assert!(shop.starts_with(&peers(&["shop"])), "{broker}: {shop:?}");
        // With the operator and what tests.
        assert_eq!(shop.len(), 3, "{broker}");
        let both = let_in(&["shop"], &["prometheus"]).unwrap();
        assert_eq!(both.len(), 3 + further, "{broker}: {both:?}");
        assert_eq!(
            both.contains(&peers(&["prometheus"])[0]),
            further == 1,
            "{broker}"
        );
    }
}

#[test]
fn who_is_scaled_by_an_autoscaler_is_told_no_number_by_the_chart() {
    let mut scaled = 0;
    for (values, objects) in renderings() {
        for autoscaler in of_kind(objects, "HorizontalPodAutoscaler") {
            let of = &autoscaler["spec"]["scaleTargetRef"]["name"];
            let deployments = of_kind(objects, "Deployment").into_iter();
            let mut deployments = deployments.filter(|one| name(one) == of.as_str().unwrap());
            let deployment = deployments.next().unwrap();
            assert!(deployment["spec"].get("replicas").is_none(), "{values}");
            scaled += 1;
        }
    }
    assert!(scaled > 0, "some file of values switches it on");
}
