//! Which values are taken, and what is said of those that are not.

use super::*;

/// Every value of a file by its path; lists and what is free-form count as one.
fn leaves(values: &Value, usual: &Value, path: &str, found: &mut BTreeMap<String, Value>) {
    match values {
        Value::Object(members) if !usual.as_object().is_some_and(Map::is_empty) => {
            for (key, value) in members {
                leaves(value, &usual[key], &format!("{path}.{key}"), found);
            }
        }
        other => {
            found.insert(path.to_owned(), other.clone());
        }
    }
}

fn values_of(file: &str) -> Value {
    read(&fs::read(chart().join(file)).unwrap()).remove(0)
}

#[test]
fn one_file_sets_every_value_to_another_than_the_usual() {
    // What is `embedded`'s alone, or would leave something out: other files set these.
    let elsewhere = [
        ".broker",
        ".gateway.persistence.enabled",
        ".gateway.persistence.size",
        ".gateway.persistence.storageClassName",
        ".crds.enabled",
        ".rbac.create",
        ".rbac.userRoles",
        ".image.registry",
        ".image.digest",
        ".uninstall.releaseFinalizers",
        ".operator.serviceAccount.create",
        ".gateway.serviceAccount.create",
        ".uninstall.serviceAccount.create",
        ".pulsar.url",
        ".pulsar.adminUrl",
        ".gateway.replicas",
        ".operator.podDisruptionBudget.enabled",
        ".gateway.podDisruptionBudget.enabled",
    ];
    let usual_values = values_of("values.yaml");
    let (mut usual, mut given) = (BTreeMap::new(), BTreeMap::new());
    leaves(&usual_values, &usual_values, "", &mut usual);
    leaves(
        &values_of("ci/everything-values.yaml"),
        &usual_values,
        "",
        &mut given,
    );
    for (path, usual) in &usual {
        if elsewhere.contains(&path.as_str()) {
            assert!(!given.contains_key(path), "{path} is set after all");
            continue;
        }
        assert!(
            given.get(path).is_some_and(|given| given != usual),
            "{path} is {usual} as usual"
        );
    }
}

#[test]
fn the_values_for_development_are_those_that_are_tried() {
    assert_eq!(
        values_of("values-dev.yaml"),
        values_of("ci/dev-values.yaml")
    );
}

/// What `helm template` says to values that it does not take.
fn refusal(values: &Value) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, values.to_string()).unwrap();
    let output = helm(&["template", "herald"], file.path());
    assert!(!output.status.success(), "{values} was taken");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    let given = json!({
        "image": {"registry": "registry.example", "repository": "herald"},
        "nameOverride": "",
        "fullnameOverride": "",
        "commonLabels": {},
        "watchNamespaces": [],
        "operator": {"podLabels": {}},
        "gateway": {"autoscaling": {"enabled": true, "minReplicas": 2}},
        "pulsar": {"url": "pulsar://broker:6650", "adminUrl": "http://broker:8080"},
        "postgresql": {"existingSecret": "database"},
    });
    for (pointer, value, said) in [
        ("/pulsar/url", json!(""), "pulsar.url"),
        ("/pulsar/adminUrl", json!(""), "pulsar.adminUrl"),
        (
            "/postgresql/existingSecret",
            json!(""),
            "postgresql.existingSecret",
        ),
        // It would be a public one's.
        ("/image/registry", json!(""), "image.registry"),
        // Services and Namespaces must be called otherwise, and labels would be there twice.
        ("/fullnameOverride", json!("my.herald"), "fullnameOverride"),
        ("/fullnameOverride", json!("2nd"), "fullnameOverride"),
        ("/nameOverride", json!("My"), "nameOverride"),
        ("/watchNamespaces", json!(["my.shop"]), "watchNamespaces"),
        (
            "/commonLabels",
            json!({"app.kubernetes.io/component": "x"}),
            "'app.kubernetes.io/component'",
        ),
        (
            "/operator/podLabels",
            json!({"app.kubernetes.io/name": "x"}),
            "'app.kubernetes.io/name'",
        ),
        (
            "/gateway/autoscaling/minReplicas",
            json!(9),
            "gateway.autoscaling.minReplicas",
        ),
        ("/pulsar/url", json!("http://broker:8080"), "pulsar/url"),
        ("/pulsar/url", json!(7), "pulsar/url"),
    ] {
        let mut values = given.clone();
        *values.pointer_mut(pointer).unwrap() = value;
        let refusal = refusal(&values);
        assert!(refusal.contains(said), "{pointer}: {refusal}");
    }
}

/// Helm lets a release be called what no Service may be.
#[test]
fn a_release_whose_name_no_service_may_have_is_told_of_the_override() {
    let file = chart().join("ci/dev-values.yaml");
    for release in ["my.herald", "2nd-herald"] {
        let output = helm(&["template", release], &file);
        let said = String::from_utf8_lossy(&output.stderr);
        let refused = !output.status.success() && said.contains("fullnameOverride");
        assert!(refused, "{release}: {said}");
    }
}

#[test]
fn a_label_that_is_given_twice_is_there_once() {
    let values = json!({
        "image": {"registry": "registry.example"},
        "broker": "embedded",
        "commonLabels": {"team": "all", "tier": "all"},
        "operator": {"podLabels": {"team": "own"}},
        "metrics": {"serviceMonitor": {"enabled": true, "labels": {"team": "own"}}},
    });
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, values.to_string()).unwrap();
    // A key that is there twice is refused when it is read.
    let objects = render(file.path());
    let own = |labels: &Value| labels["team"] == "own" && labels["tier"] == "all";
    let monitor = of_kind(&objects, "ServiceMonitor")[0];
    assert!(own(&monitor["metadata"]["labels"]), "{monitor}");
    let deployments = of_kind(&objects, "Deployment").into_iter();
    let mut operator = deployments.filter(|object| name(object) == "herald-operator");
    assert!(own(pod(operator.next().unwrap()).unwrap().0));
}

#[test]
fn a_value_that_nobody_reads_is_refused_unless_it_is_of_all_charts() {
    for (unknown, said) in [
        (json!({"brokers": "embedded"}), "brokers"),
        (json!({"gateway": {"replica": 3}}), "replica"),
        (json!({"pulsar": {"ca": {"secret": "x"}}}), "secret"),
        (json!({"operator": {"resources": {"limit": {}}}}), "limit"),
    ] {
        let mut values = json!({"broker": "embedded"});
        for (key, value) in unknown.as_object().unwrap() {
            values[key] = value.clone();
        }
        let refusal = refusal(&values);
        assert!(refusal.contains(said), "{unknown}: {refusal}");
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(
        &file,
        json!({"broker": "embedded", "global": {"storageClass": "fast", "imageRegistry": "registry.example"}}).to_string(),
    )
    .unwrap();
    assert!(render(file.path()).len() > 10);
}

/// The schema refuses what it does not know wherever it knows what there is.
#[test]
fn the_schema_explains_every_usual_value() {
    fn resolve<'a>(schema: &'a Value, root: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(reference) => root.pointer(reference.trim_start_matches('#')).unwrap(),
            None => schema,
        }
    }
    fn walk(values: &Value, schema: &Value, root: &Value, path: &str) {
        let schema = resolve(schema, root);
        if let (Value::Object(members), Some(known)) = (values, schema["properties"].as_object()) {
            let open = path == ".global";
            assert_eq!(schema["additionalProperties"] == false, !open, "{path}");
            for (key, value) in members {
                let path = format!("{path}.{key}");
                let schema = known
                    .get(key)
                    .unwrap_or_else(|| panic!("{path} is not in the schema"));
                walk(value, schema, root, &path);
            }
            for key in known.keys().filter(|_| path != ".global") {
                let optional = ["requests", "limits", "claims"].contains(&key.as_str());
                assert!(
                    optional || members.contains_key(key),
                    "{path}.{key} is not in values.yaml"
                );
            }
        }
    }
    let schema: Value =
        serde_json::from_slice(&fs::read(chart().join("values.schema.json")).unwrap()).unwrap();
    walk(&values_of("values.yaml"), &schema, &schema, "");
}
