//! What is checked in as good is good, and one thing wrong with it is found.

#![allow(
    clippy::unwrap_used,
    reason = "in a test a panic is the failure; clippy.toml only knows functions with #[test]"
)]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;

use herald_crds::mutants::{self, mutants};
use herald_crds::render::Compiled;
use herald_crds::{Definition, Kind, Resource, ResourceSet};

use common::{all_samples, samples};

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
fn every_template_among_the_samples_renders_its_own_samples() {
    for folder in ["quickstart", "reference"] {
        let mut set = ResourceSet::default();
        for (_, document) in samples(folder) {
            set.insert(Resource::parse(&document).unwrap(), "shop");
        }
        assert!(!set.templates.is_empty());
        for (namespace, name) in set.templates.keys() {
            let definition = Definition::of(&set, namespace, name).unwrap().unwrap();
            let compiled = Compiled::new(Arc::new(definition));
            assert!(compiled.is_ok(), "{folder}: {name}: {:#?}", compiled.err());
        }
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
