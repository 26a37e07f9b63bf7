//! The CEL rules of the schemas, evaluated as the API server would: they compile, let every sample pass, refuse what
//! they are for, and say so.

#![allow(
    clippy::unwrap_used,
    reason = "in a test a panic is the failure; clippy.toml only knows functions with #[test]"
)]

mod common;

use herald_crds::mutants::mutants;
use herald_crds::{Channel, Kind, Validate, crd};
use kube_cel::Validator;
use serde_json::{Value, json};

use common::{all_samples, samples};

/// The messages of the rules that refuse `document` in the place of `old`.
fn refusals(document: &Value, old: Option<&Value>) -> Vec<String> {
    let kind: Kind = document["kind"].as_str().unwrap().parse().unwrap();
    let schema = &crd::definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    match Validator::new().validate(schema, document, old) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.into_vec().into_iter().map(|e| e.message).collect(),
    }
}

#[test]
fn every_sample_passes_the_rules_also_as_an_update_of_itself() {
    for (file, document) in all_samples() {
        assert_eq!(refusals(&document, None), [""; 0], "{file}");
        assert_eq!(refusals(&document, Some(&document)), [""; 0], "{file}");
    }
}

#[test]
fn every_rule_refuses_its_mutants_with_its_own_message() {
    let mut made = 0;
    for (file, document) in all_samples() {
        for mutant in mutants(&document) {
            let message = match mutant.name.split_once(" rule: ") {
                Some((_, message)) => message,
                None if mutant.name.ends_with("no DNS label")
                    || mutant.name.ends_with("name too long") =>
                {
                    "metadata.name must be a DNS label of at most 40 characters"
                }
                None => continue,
            };
            made += 1;
            let refusals = refusals(&mutant.document, None);
            assert!(
                refusals.iter().any(|refusal| refusal.starts_with(message)),
                "{file}: {}: {refusals:?}",
                mutant.name
            );
        }
    }
    assert!(made > 50, "only {made} mutants");
}

#[test]
fn what_must_not_change_is_refused_by_rules_and_by_validate_alike() {
    let old = samples("reference")
        .into_iter()
        .find(|(file, _)| file == "channel-mail.yaml")
        .unwrap()
        .1;
    let cases: [(&str, &str, Value, &str); 4] = [
        ("/spec", "medium", json!("sms"), "medium cannot be changed"),
        ("/spec/topics", "partitions", json!(1), "can only grow"),
        ("/spec", "topics", json!({}), "can only grow"),
        (
            "/spec",
            "replicas",
            json!(5),
            "the operator decides the number of replicas",
        ),
    ];
    let read = |document: &Value| serde_json::from_value::<Channel>(document.clone()).unwrap();
    for (place, field, value, words) in cases {
        let mut new = old.clone();
        new.pointer_mut(place).unwrap()[field] = value;
        let refusals = refusals(&new, Some(&old));
        assert!(
            refusals.iter().any(|r| r.contains(words)),
            "{field}: {refusals:?}"
        );
        let problems = read(&new).validate_change(&read(&old));
        assert_eq!(problems.len(), 1, "{field}: {problems:?}");
        assert!(problems[0].message.contains(words), "{problems:?}");
    }
    let mut grown = old.clone();
    grown["spec"]["topics"]["partitions"] = json!(4);
    assert_eq!(refusals(&grown, Some(&old)), [""; 0]);
    assert_eq!(read(&grown).validate_change(&read(&old)), []);
}
