//! What is checked in is what the types say.

use std::fs;

use herald_crds::{Kind, crd};

fn generated(kind: Kind) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/herald/files/crds");
    let file = format!("{folder}/{}.yaml", kind.plural());
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}"))
}

#[test]
fn the_checked_in_definitions_are_current() {
    for kind in Kind::ALL {
        assert!(
            generated(kind) == crd::manifest(kind),
            "{}.yaml is not current: cargo run -p herald-crds --bin crdgen",
            kind.plural()
        );
    }
}

#[test]
fn the_written_yaml_reads_as_the_definition() {
    for kind in Kind::ALL {
        let read: serde_json::Value = serde_saphyr::from_str(&generated(kind)).unwrap();
        assert_eq!(&read, crd::definition(kind));
    }
}
