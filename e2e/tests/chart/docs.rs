//! What the documentation says to install with, and what alerts are about.

use herald_dispatcher::metrics::Metrics;

use super::*;

/// What is counted, by the names under which Prometheus knows it.
fn metrics() -> BTreeSet<String> {
    let dispatcher = Metrics::REGISTERED.iter().map(|one| ("herald", one));
    let operator = herald_operator::metrics::Metrics::REGISTERED.iter();
    let all = dispatcher.chain(operator.map(|one| ("herald_operator", one)));
    let mut names = BTreeSet::new();
    for (prefix, (name, kind)) in all {
        let suffixes: &[&str] = if kind.contains("Counter") {
            &["_total"]
        } else if kind.contains("Histogram") {
            &["_bucket", "_sum", "_count"]
        } else {
            &[""]
        };
        names.extend(
            suffixes
                .iter()
                .map(|suffix| format!("{prefix}_{name}{suffix}")),
        );
    }
    names
}

/// The names of Herald's metrics in an expression.
fn named(expression: &str) -> BTreeSet<&str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("herald_")).collect()
}

#[test]
fn alerts_are_about_metrics_that_there_are_and_lead_to_what_to_do() {
    let alerts = read(&fs::read(chart().join("files/alerts.yaml")).unwrap()).remove(0);
    let known = metrics();
    let manual = fs::read_to_string(repository().join("docs/operations.md")).unwrap();
    let headings = manual.lines().filter_map(|line| line.strip_prefix("### "));
    let anchors: BTreeSet<_> = headings
        .map(|heading| heading.to_lowercase().replace(' ', "-"))
        .collect();
    let mut seen = BTreeSet::new();
    for rule in list(&alerts["groups"])
        .iter()
        .flat_map(|group| list(&group["rules"]))
    {
        let alert = rule["alert"].as_str().unwrap();
        assert!(seen.insert(alert), "{alert} is there twice");
        let expression = rule["expr"].as_str().unwrap();
        let names = named(expression);
        for name in names {
            assert!(known.contains(name), "{alert}: there is no {name}");
        }
        assert!(
            ["critical", "warning"].contains(&rule["labels"]["severity"].as_str().unwrap()),
            "{alert}"
        );
        let annotations = &rule["annotations"];
        assert!(
            annotations["summary"].is_string() && annotations["description"].is_string(),
            "{alert}"
        );
        let runbook = annotations["runbook_url"].as_str().unwrap();
        let anchor = runbook.strip_prefix("docs/operations.md#").unwrap();
        assert!(anchors.contains(anchor), "{alert}: {runbook} leads nowhere");
        assert!(
            manual.contains(&format!("`{alert}`")),
            "{alert} is not explained"
        );
    }
    assert!(seen.len() > 10, "{seen:?}");
}

#[test]
fn the_chart_hands_alerts_over_as_they_are_but_for_where_they_lead() {
    let source = fs::read_to_string(chart().join("files/alerts.yaml")).unwrap();
    let page = "https://pages.example/herald/operations.md";
    let elsewhere = source.replace("docs/operations.md#", &format!("{page}#"));
    for (values, expected) in [
        ("ci/cluster-values.yaml", source),
        ("ci/everything-values.yaml", elsewhere),
    ] {
        let objects = render(&chart().join(values));
        let [rule] = of_kind(&objects, "PrometheusRule")[..] else {
            panic!("there should be one");
        };
        assert_eq!(rule["spec"], read(expected.as_bytes()).remove(0));
    }
}

#[test]
fn the_dashboard_shows_metrics_that_there_are() {
    let objects = render(&chart().join("ci/cluster-values.yaml"));
    let maps = of_kind(&objects, "ConfigMap").into_iter();
    let mut maps = maps.filter(|map| map["metadata"]["labels"]["grafana_dashboard"] == "1");
    let dashboard = maps.next().unwrap()["data"]["herald.json"]
        .as_str()
        .unwrap();
    let dashboard: Value = serde_json::from_str(dashboard).unwrap();
    let known = metrics();
    let (mut ids, mut shown) = (BTreeSet::new(), BTreeSet::new());
    for panel in list(&dashboard["panels"]) {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let targets = list(&panel["targets"]);
        assert_eq!(targets.is_empty(), panel["type"] == "row", "{panel}");
        for target in targets {
            let names = named(target["expr"].as_str().unwrap());
            assert!(!names.is_empty(), "{target}");
            for name in names {
                assert!(known.contains(name), "there is no {name}");
                shown.insert(name);
            }
        }
    }
    assert!(shown.len() > 20, "{shown:?}");
    for variable in list(&dashboard["templating"]["list"]) {
        for name in named(&variable["query"].to_string()) {
            assert!(known.contains(name), "there is no {name}");
        }
    }
}

#[test]
fn what_the_documentation_installs_with_is_taken() {
    let argo = repository().join("docs/gitops/argocd/herald.yaml");
    let flux = repository().join("docs/gitops/flux/herald.yaml");
    let argo = read(&fs::read(argo).unwrap()).remove(0);
    let flux = read(&fs::read(flux).unwrap());
    let release = flux
        .iter()
        .find(|object| kind(object) == "HelmRelease")
        .unwrap();
    let page = fs::read_to_string(repository().join("docs/operations.md")).unwrap();
    let (_, rest) = page.split_once("cat > herald.yaml <<'END'\n").unwrap();
    let (written, _) = rest.split_once("    END\n").unwrap();
    let lines: Vec<_> = written.lines().map(|line| &line[4..]).collect();
    let written = lines.join("\n");
    let manual = read(written.as_bytes()).remove(0);
    for values in [
        &argo["spec"]["source"]["helm"]["valuesObject"],
        &release["spec"]["values"],
        &manual,
    ] {
        assert!(values["pulsar"]["url"].is_string(), "{values}");
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, values.to_string()).unwrap();
        let objects = render(file.path());
        let deployments = of_kind(&objects, "Deployment");
        assert_eq!(deployments.len(), 2);
        for deployment in deployments {
            let image = &containers(pod(deployment).unwrap().1).next().unwrap()["image"];
            let pushed = format!("docker push {}\n", image.as_str().unwrap());
            assert!(page.contains(&pushed), "nobody pushes {image}");
        }
    }
}

#[test]
fn what_is_to_be_applied_can_be_read() {
    let mut count = 0;
    for folder in ["argocd", "flux"] {
        for entry in fs::read_dir(repository().join("docs/gitops").join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "yaml") {
                continue;
            }
            for object in read(&fs::read(&path).unwrap()) {
                assert!(
                    object["apiVersion"].is_string() && object["metadata"]["name"].is_string(),
                    "{}",
                    path.display()
                );
                count += 1;
            }
        }
    }
    assert!(count >= 6, "{count} objects");
}

/// Links from page to page, and to headings of pages.
#[test]
fn the_links_of_the_documentation_lead_somewhere() {
    let pages = [
        "docs/operations.md",
        "docs/gitops/README.md",
        "docs/quickstart/README.md",
    ];
    let anchors = |page: &Path| -> BTreeSet<String> {
        let text = fs::read_to_string(page).unwrap();
        let headings = text.lines().filter(|line| line.starts_with('#'));
        let plain = headings.map(|line| line.trim_start_matches('#').trim().to_lowercase());
        let kept = |c: char| c.is_alphanumeric() || " -_".contains(c);
        plain
            .map(|heading| {
                heading
                    .chars()
                    .filter(|c| kept(*c))
                    .collect::<String>()
                    .replace(' ', "-")
            })
            .collect()
    };
    for page in pages {
        let path = repository().join(page);
        let text = fs::read_to_string(&path).unwrap();
        for link in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            if link.starts_with("http") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() {
                path.clone()
            } else {
                path.parent().unwrap().join(file)
            };
            assert!(target.exists(), "{page}: {link}");
            assert!(
                anchor.is_empty() || anchors(&target).contains(anchor),
                "{page}: {link}"
            );
        }
    }
}
