//! The samples, read.

use std::fs;

use serde_json::Value;

/// The documents of a folder of samples, with their files' names.
pub fn samples(folder: &str) -> Vec<(String, Value)> {
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

/// The documents of every folder of samples.
pub fn all_samples() -> impl Iterator<Item = (String, Value)> {
    ["quickstart", "reference"].into_iter().flat_map(samples)
}
