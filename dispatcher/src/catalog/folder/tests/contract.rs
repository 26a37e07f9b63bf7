//! The promises of every catalog, kept by a folder.

use std::fs;
use std::sync::Arc;

use async_trait::async_trait;
use tempfile::TempDir;

use crate::catalog::contract::{Subject, suite};
use crate::catalog::folder::FolderCatalog;
use crate::catalog::{Catalog, Snapshot};

struct Folder {
    dir: TempDir,
    catalog: FolderCatalog,
}

#[async_trait]
impl Subject for Folder {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let catalog = FolderCatalog::open(dir.path(), "default").unwrap();
        Self { dir, catalog }
    }

    fn catalog(&self) -> &dyn Catalog {
        &self.catalog
    }

    fn put(&self, name: &str, yaml: &str) {
        fs::write(self.dir.path().join(format!("{name}.yaml")), yaml).unwrap();
    }

    fn delete(&self, _: &str, name: &str) {
        fs::remove_file(self.dir.path().join(format!("{name}.yaml"))).unwrap();
    }

    async fn settled(&self) -> Arc<Snapshot> {
        self.catalog.reload_now()
    }
}

suite!(Folder);
