//! What is checked in as good is good, and one thing wrong with it is found.

#![allow(
    clippy::unwrap_used,
    reason = "in a test a panic is the failure; clippy.toml only knows functions with #[test]"
)]

use std::collections::BTreeSet;
use std::fs;

use herald_crds::mutants::{self, mutants};
use herald_crds::{Kind, Resource, ResourceSet};
use serde_json::Value;

/// The documents of a folder of samples, with their files' names.
fn samples(folder: &str) -> Vec<(String, Value)> {
    let folder = format!("{}/samples/{folder}", env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "yaml")
        })
        .collect();
    files.sort();
    assert!(!files.is_empty());
    let read = |path: std::path::PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let document =
            serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        (
            path.file_name().unwrap().to_string_lossy().into_owned(),
            document,
        )
    };
    files.into_iter().map(read).collect()
}

fn all_samples() -> impl Iterator<Item = (String, Value)> {
    ["quickstart", "reference"].into_iter().flat_map(samples)
}

#[test]
fn every_sample_is_good_by_itself_and_among_the_others() {
    for folder in ["quickstart", "reference"] {
        let mut set = ResourceSet::default();
        for (file, document) in samples(folder) {
            let resource = Resource::parse(&document).unwrap_or_else(|p| panic!("{file}: {p:#?}"));
            assert!(set.insert(resource, "shop"), "{file}");
        }
        assert_eq!(set.problems(), [], "{folder}");
    }
}

#[test]
fn every_mutant_is_found_where_it_is_wrong() {
    let mut made = 0;
    for (file, document) in all_samples() {
        for mutant in mutants(&document) {
            made += 1;
            let (resource, problems) = Resource::parse_leniently(&mutant.document);
            let found = |problems: &[herald_crds::Problem]| {
                problems
                    .iter()
                    .any(|problem| problem.path.starts_with(&mutant.path))
            };
            let name = &mutant.name;
            assert!(
                found(&problems),
                "{file}: {name} at {}: {problems:#?}",
                mutant.path
            );
            let unread = ["unknown", "version", "kind"]
                .iter()
                .any(|word| name.ends_with(word));
            if let Some(resource) = resource.filter(|_| !unread) {
                let problems = resource.validate();
                assert!(
                    found(&problems),
                    "validate() of {file}: {name}: {problems:#?}"
                );
            }
        }
    }
    assert!(made > 1000, "only {made} mutants");
}

#[test]
fn every_bound_and_rule_of_every_schema_has_a_mutant() {
    let made: BTreeSet<String> = samples("reference")
        .iter()
        .flat_map(|(_, document)| mutants(document))
        .map(|mutant| mutant.name)
        .collect();
    let bounds: BTreeSet<String> = Kind::ALL.into_iter().flat_map(mutants::bounds).collect();
    let missing: Vec<_> = bounds.difference(&made).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}
