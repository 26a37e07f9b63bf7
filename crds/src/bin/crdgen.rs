//! Writes the `CustomResourceDefinitions`, a file each, into a folder: `crdgen [FOLDER]`, the chart's by default.

use std::process::ExitCode;
use std::{env, fs};

use herald_crds::{Kind, crd};

fn main() -> ExitCode {
    let folder = env::args().nth(1).unwrap_or_else(|| {
        concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/herald/files/crds").to_owned()
    });
    for kind in Kind::ALL {
        let file = format!("{folder}/{}.yaml", kind.plural());
        if let Err(error) = fs::write(&file, crd::manifest(kind)) {
            eprintln!("cannot write {file}: {error}");
            return ExitCode::FAILURE;
        }
        println!("{file}");
    }
    ExitCode::SUCCESS
}
