//! The resources' definitions, as a real API server takes them: every field is explained, every sample is good, and one
//! thing wrong with a sample is refused, or named by the operator's `Stalled`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use herald_crds::mutants::{Mutant, bounds, mutants as mutants_of};
use herald_crds::{Kind, crd};
use herald_dispatcher::catalog::yaml;
use herald_e2e::process;
use kube::Client;
use kube::api::{ListParams, PostParams};
use kube::core::Request;
use serde_json::Value;

use super::Stage;
use super::herald::{PATIENCE, condition, is};
use super::namespace::with_namespace;

/// The folders of samples.
const SAMPLES: [&str; 2] = ["quickstart", "reference"];

/// How many requests are under way at a time.
const AT_A_TIME: usize = 8;

/// Every field is explained, and every sample is taken.
pub async fn run(stage: &Stage) -> anyhow::Result<String> {
    let mut fields = 0;
    for kind in Kind::ALL {
        fields += explained(stage, kind)?;
    }
    with_namespace(stage, "crds", async |client, namespace| {
        let mut taken = 0;
        for (file, document) in samples()? {
            let answer = try_out(&client, &namespace, kind_of(&document)?, &document).await?;
            if let Some(refusal) = answer {
                bail!("{file} is refused: {refusal}");
            }
            taken += 1;
        }
        Ok(format!("{fields} fields explained, {taken} samples taken"))
    })
    .await
}

/// One thing wrong with a sample is refused, or is something that only Herald itself can know: the operator tells it then.
pub async fn mutants(stage: &Stage) -> anyhow::Result<String> {
    let mut all: Vec<(Kind, Mutant)> = Vec::new();
    for (_, document) in samples()? {
        let kind = kind_of(&document)?;
        all.extend(
            mutants_of(&document)
                .into_iter()
                .map(|mutant| (kind, mutant)),
        );
    }
    let schema: BTreeSet<String> = Kind::ALL.into_iter().flat_map(bounds).collect();
    with_namespace(stage, "mutants", async |client, namespace| {
        let tried: Vec<_> = all
            .iter()
            .map(|(kind, mutant)| try_out(&client, &namespace, *kind, &mutant.document))
            .collect();
        let answers: Vec<Option<String>> = futures::stream::iter(tried)
            .buffered(AT_A_TIME)
            .try_collect()
            .await?;
        let count = answers.iter().flatten().count();
        ensure!(count > 1000, "only {count} mutants were refused");
        let answered = all.iter().zip(&answers);
        let taken: Vec<_> = answered
            .filter_map(|(one, answer)| answer.is_none().then_some(one))
            .collect();
        let excused = taken
            .iter()
            .filter(|(_, mutant)| schema.contains(&mutant.name));
        let excused: Vec<_> = excused.map(|(_, mutant)| called(mutant)).collect();
        ensure!(
            excused.is_empty(),
            "taken, though the schema knows: {}",
            excused.join("; ")
        );
        all_stalled(&client, &namespace, &taken).await?;
        Ok(format!(
            "{count} mutants refused by the API server, {} stalled by the operator, each where it is wrong",
            taken.len()
        ))
    })
    .await
}

/// Has these for real, and waits until the operator has stalled every one and says where it is wrong.
async fn all_stalled(
    client: &Client,
    namespace: &str,
    mutants: &[&(Kind, Mutant)],
) -> anyhow::Result<()> {
    let created: Vec<_> = mutants
        .iter()
        .enumerate()
        .map(|(number, (kind, mutant))| {
            let mut document = mutant.document.clone();
            // Many are made of one sample.
            document["metadata"]["name"] = format!("mutant-{number}").into();
            create(client, namespace, *kind, document)
        })
        .collect();
    futures::stream::iter(created)
        .buffered(AT_A_TIME)
        .try_collect::<()>()
        .await?;
    let begin = Instant::now();
    loop {
        let mut told = BTreeMap::new();
        for kind in Kind::ALL {
            told.extend(stalled(client, namespace, kind).await?);
        }
        let missing: Vec<_> = mutants
            .iter()
            .enumerate()
            .filter_map(|(number, (_, mutant))| {
                let message = told.get(&format!("mutant-{number}"));
                let is_told = message.is_some_and(|message| message.contains(&mutant.path));
                (!is_told).then(|| format!("{}: {message:?}", called(mutant)))
            })
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        ensure!(
            begin.elapsed() < PATIENCE,
            "the operator does not say what is wrong with {} of {}: {}",
            missing.len(),
            mutants.len(),
            missing.join("; ")
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn called(mutant: &Mutant) -> String {
    format!("{} at {}", mutant.name, mutant.path)
}

async fn create(
    client: &Client,
    namespace: &str,
    kind: Kind,
    mut document: Value,
) -> anyhow::Result<()> {
    document["metadata"]["namespace"] = namespace.into();
    let request = Request::new(path(namespace, kind))
        .create(&PostParams::default(), serde_json::to_vec(&document)?)?;
    client.request_text(request).await.with_context(|| {
        format!(
            "it was taken in a dry run, and is refused: {}",
            document["metadata"]
        )
    })?;
    Ok(())
}

/// Why each resource of a kind is stalled, of those that are, by their names.
async fn stalled(
    client: &Client,
    namespace: &str,
    kind: Kind,
) -> anyhow::Result<BTreeMap<String, String>> {
    let request = Request::new(path(namespace, kind)).list(&ListParams::default())?;
    let list: Value = client.request(request).await?;
    let items = list["items"].as_array().into_iter().flatten();
    let told = items.filter_map(|item| {
        let message = is(item, "Stalled", "True").then(|| condition(item, "Stalled"))??;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Some((text(&item["metadata"]["name"])?, text(&message["message"])?))
    });
    Ok(told.collect())
}

fn path(namespace: &str, kind: Kind) -> String {
    format!(
        "/apis/herald.dev/v1alpha1/namespaces/{namespace}/{}",
        kind.plural()
    )
}

/// Every document of the samples, with its file's name.
fn samples() -> anyhow::Result<Vec<(String, Value)>> {
    let mut samples = Vec::new();
    for folder in SAMPLES {
        samples.extend(samples_in(folder)?);
    }
    Ok(samples)
}

/// Those of one folder.
pub fn samples_in(folder: &str) -> anyhow::Result<Vec<(String, Value)>> {
    let mut samples = Vec::new();
    let folder = process::repository().join("crds/samples").join(folder);
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let documents = yaml::read(&fs::read(&path)?)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.display().to_string();
        samples.extend(
            documents
                .into_iter()
                .map(|document| (name.clone(), document.value)),
        );
    }
    ensure!(!samples.is_empty(), "there are no samples");
    Ok(samples)
}

/// What a document declares.
pub fn kind_of(document: &Value) -> anyhow::Result<Kind> {
    let kind = document["kind"].as_str().and_then(|kind| kind.parse().ok());
    kind.context("a document is of no kind")
}

/// What the API server would say to a document: why it refuses it, or `None`. Nothing comes of it.
async fn try_out(
    client: &Client,
    namespace: &str,
    kind: Kind,
    document: &Value,
) -> anyhow::Result<Option<String>> {
    let mut document = document.clone();
    if let Some(metadata) = document["metadata"].as_object_mut() {
        metadata.insert("namespace".to_owned(), namespace.into());
    }
    let params = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let mut request =
        Request::new(path(namespace, kind)).create(&params, serde_json::to_vec(&document)?)?;
    // As kubectl asks: a field that nobody knows is an error.
    *request.uri_mut() = format!("{}&fieldValidation=Strict", request.uri()).parse()?;
    match client.request_text(request).await {
        Ok(_) => Ok(None),
        Err(kube::Error::Api(status)) if matches!(status.code, 400 | 422) => {
            Ok(Some(status.message.clone()))
        }
        Err(error) => Err(error).context("the API server did not say"),
    }
}

/// Checks that `kubectl explain` knows every field of a kind, each with a description. Answers how many there are.
fn explained(stage: &Stage, kind: Kind) -> anyhow::Result<usize> {
    let schema = &crd::definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let mut fields = BTreeSet::new();
    collect(schema, "", &mut fields);
    let name = kind.as_str().to_lowercase();
    let text = stage
        .kubernetes()?
        .kubectl(&["explain", &name, "--recursive"])?;
    let told = told(&text);
    let missing: Vec<_> = fields.difference(&told).collect();
    ensure!(
        missing.is_empty(),
        "kubectl explain {name} knows nothing of {missing:?}"
    );
    // What it says to one field, it takes from where it has those.
    let openapi =
        stage
            .kubernetes()?
            .kubectl(&["get", "--raw", "/openapi/v3/apis/herald.dev/v1alpha1"])?;
    let openapi: Value = serde_json::from_str(&openapi)?;
    let served = openapi["components"]["schemas"].as_object();
    let served = served
        .into_iter()
        .flatten()
        .find(|(_, schema)| schema["x-kubernetes-group-version-kind"][0]["kind"] == kind.as_str());
    let (_, served) = served.with_context(|| format!("no schema of {name} is served"))?;
    described(&served["properties"]["spec"], &name, "spec")?;
    described(&served["properties"]["status"], &name, "status")?;
    Ok(fields.len())
}

/// The paths of a schema's fields, as `kubectl explain` shows them: lists and maps are looked through.
fn collect(schema: &Value, path: &str, fields: &mut BTreeSet<String>) {
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        collect(schema, &path, fields);
        fields.insert(path);
    }
    for inner in ["items", "additionalProperties"] {
        if schema[inner].is_object() {
            collect(&schema[inner], path, fields);
        }
    }
}

/// The paths that `kubectl explain --recursive` prints: a field each line, with a tab and its type, two spaces deeper for
/// each field it is in.
fn told(text: &str) -> BTreeSet<String> {
    let mut above: Vec<&str> = Vec::new();
    let mut told = BTreeSet::new();
    for line in text.lines() {
        let Some((field, _)) = line.split_once("\t<") else {
            continue;
        };
        let name = field.trim_start();
        let depth = (field.len() - name.len()) / 2;
        above.truncate(depth.saturating_sub(1));
        above.push(name);
        told.insert(above.join("."));
    }
    told
}

/// Checks that every field below one has a description.
fn described(schema: &Value, kind: &str, path: &str) -> anyhow::Result<()> {
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        ensure!(
            schema["description"]
                .as_str()
                .is_some_and(|text| !text.is_empty()),
            "{kind}.{path} has no description"
        );
        described(schema, kind, &path)?;
    }
    for inner in ["items", "additionalProperties"] {
        if schema[inner].is_object() {
            described(&schema[inner], kind, path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubectl_explains_is_read_by_its_depth() {
        let text = "KIND:       Channel\nFIELDS:\n  kind\t<string>\n  spec\t<Object> -required-\n    \
                    medium\t<string> -required-\n    enum: email, sms\n    pod\t<Object>\n      env\t<[]Object>\n  \
                    status\t<Object>\n";
        let told = told(text);
        let expected = [
            "kind",
            "spec",
            "spec.medium",
            "spec.pod",
            "spec.pod.env",
            "status",
        ];
        assert_eq!(told, expected.map(str::to_owned).into());
    }
}
