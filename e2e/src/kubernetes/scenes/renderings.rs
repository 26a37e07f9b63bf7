//! What the chart makes of every file of values is taken by the API server, whichever Helm made it; and both install,
//! test and uninstall it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::super::herald::{chart, helm_of};
use super::Set;

/// Helm 3 and 4.
const HELMS: [&str; 2] = ["helm", "helm4"];

/// Those that the values name.
const NAMESPACES: [&str; 3] = ["herald", "shop", "platform"];

/// The Prometheus Operator's kinds. Their definitions are not at hand: these take whatever is said.
const FOREIGN: [(&str, &str); 3] = [
    ("ServiceMonitor", "servicemonitors"),
    ("PodMonitor", "podmonitors"),
    ("PrometheusRule", "prometheusrules"),
];

/// What signs links, which outlives an uninstall.
const KEY: &str = "herald-link-signing-key";

/// Plays it.
pub fn play(set: &Set) -> anyhow::Result<String> {
    let kubernetes = set.kubernetes()?;
    let mut items: Vec<_> = FOREIGN
        .iter()
        .map(|(kind, plural)| anything_goes("monitoring.coreos.com", kind, plural))
        .collect();
    items.extend(NAMESPACES.map(|name| {
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {
            "name": name,
            "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
        }})
    }));
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    kubernetes.apply(&list.to_string())?;
    let names = FOREIGN.map(|(_, plural)| format!("crd/{plural}.monitoring.coreos.com"));
    kubernetes.established(&names.each_ref().map(String::as_str))?;
    let files = value_files()?;
    let mut taken = 0;
    for helm in HELMS {
        for file in &files {
            taken +=
                rendered(set, helm, file).with_context(|| format!("{helm}, {}", file.display()))?;
        }
    }
    set.load()?;
    let mut took = Vec::new();
    let mut keys = Vec::new();
    for helm in HELMS {
        let begin = Instant::now();
        keys.push(installed(set, helm).with_context(|| helm.to_owned())?);
        took.push(format!("{:.0}", begin.elapsed().as_secs_f64()));
    }
    ensure!(
        keys[0] == keys[1],
        "links are signed with another key after installing again"
    );
    let count = files.len();
    let took = took.join(" and ");
    Ok(format!(
        "{count} files of values by Helm 3 and 4: {taken} objects, all taken by the API server; the chart was installed, \
         tested and uninstalled by both, in {took} s, and the second found the key that the first had made"
    ))
}

/// Renders the chart and has the API server say what it would do. Answers how many objects it took.
fn rendered(set: &Set, helm: &str, values: &Path) -> anyhow::Result<usize> {
    let kubernetes = set.kubernetes()?;
    let chart = chart().display().to_string();
    let values = values.display().to_string();
    // Without asking, Helm takes a cluster of its own age for granted.
    let version: Value = serde_json::from_str(&kubernetes.kubectl(&["get", "--raw", "/version"])?)?;
    let version = version["gitVersion"].as_str();
    let version = version.context("the API server has no version")?;
    let template = [
        "template",
        "herald",
        &chart,
        "--namespace",
        "herald",
        "--kube-version",
        version,
    ];
    let text = helm_of(
        kubernetes,
        helm,
        &[&template[..], &["--values", &values]].concat(),
    )?;
    let file = set.folder.join("rendered.yaml");
    fs::write(&file, &text).context("cannot write what was rendered")?;
    let file = file.display().to_string();
    let said = kubernetes.kubectl(&[
        "apply",
        "--server-side",
        "--dry-run=server",
        "--filename",
        &file,
    ])?;
    let taken = said.lines().filter(|line| line.contains("dry run")).count();
    // Every object says what it is, and says so at the start of a line.
    let made = text
        .lines()
        .filter(|line| line.starts_with("kind: "))
        .count();
    ensure!(taken == made && made > 0, "{taken} of {made}: {said}");
    Ok(taken)
}

/// Installs the chart as for looking around, runs its tests and uninstalls it. Answers the key that it signed links with:
/// all that is left.
fn installed(set: &Set, helm: &str) -> anyhow::Result<String> {
    let kubernetes = set.kubernetes()?;
    let values = chart().join("values-dev.yaml").display().to_string();
    let chart = chart().display().to_string();
    let within = ["--namespace", "herald", "--timeout", "3m"];
    let install = ["install", "herald", &chart, "--values", &values, "--wait"];
    helm_of(kubernetes, helm, &[&install[..], &within[..]].concat())?;
    let tested = ["test", "herald"];
    let tested = helm_of(kubernetes, helm, &[&tested[..], &within[..]].concat())?;
    ensure!(tested.contains("Succeeded"), "its tests: {tested}");
    let uninstall = ["uninstall", "herald", "--wait"];
    helm_of(kubernetes, helm, &[&uninstall[..], &within[..]].concat())?;
    let all = "deployments,jobs,services,secrets,serviceaccounts,roles,rolebindings,crds,clusterroles,clusterrolebindings";
    let left = ["get", all, "--namespace", "herald", "--output", "name"];
    let left = kubernetes.kubectl(&left)?;
    let left: Vec<_> = left
        .lines()
        .filter(|name| name.contains("herald"))
        .collect();
    ensure!(left == [format!("secret/{KEY}")], "left behind: {left:?}");
    let key = set.get("herald", &format!("secret/{KEY}"))?;
    Ok(key["data"].to_string())
}

/// The files of values that the chart is tried with.
fn value_files() -> anyhow::Result<Vec<PathBuf>> {
    let mut files = vec![chart().join("values-dev.yaml")];
    for entry in fs::read_dir(chart().join("ci")).context("cannot list the files of values")? {
        files.push(entry?.path());
    }
    files.sort();
    Ok(files)
}

/// The definition of a kind of which nothing is known.
fn anything_goes(group: &str, kind: &str, plural: &str) -> Value {
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group,
            "names": {"kind": kind, "plural": plural},
            "scope": "Namespaced",
            "versions": [{
                "name": "v1",
                "served": true,
                "storage": true,
                "schema": {"openAPIV3Schema": schema},
            }],
        },
    })
}
