//! Changes to the folder, over HTTP.

use std::sync::Arc;

use async_trait::async_trait;
use herald_crds::{Kind, Problem, Resource};

use crate::api::{EditError, Editor};
use crate::catalog::folder::{FolderCatalog, WriteError};

/// Changes the folder.
pub(super) struct Edit(pub(super) Arc<FolderCatalog>);

#[async_trait]
impl Editor for Edit {
    async fn put(&self, resource: Resource) -> Result<bool, EditError> {
        let catalog = Arc::clone(&self.0);
        blocking(move || {
            let (kind, name) = (resource.kind(), resource.name().to_owned());
            let namespace = resource
                .namespace()
                .unwrap_or(catalog.namespace())
                .to_owned();
            let document = match &resource {
                Resource::Channel(one) => serde_json::to_value(one),
                Resource::NotificationTemplate(one) => serde_json::to_value(one),
                Resource::RecipientGroup(one) => serde_json::to_value(one),
                Resource::Schedule(one) => serde_json::to_value(one),
            };
            let document = document.map_err(|error| EditError::Write {
                reason: error.to_string(),
            })?;
            catalog
                .put(kind, &namespace, &name, document)
                .map_err(refused)
        })
        .await
    }

    async fn delete(&self, kind: Kind, namespace: &str, name: &str) -> Result<(), EditError> {
        let catalog = Arc::clone(&self.0);
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        blocking(move || catalog.delete(kind, &namespace, &name).map_err(refused)).await
    }
}

/// The folder's calls block on the file system.
async fn blocking<T: Send + 'static>(
    edit: impl FnOnce() -> Result<T, EditError> + Send + 'static,
) -> Result<T, EditError> {
    match tokio::task::spawn_blocking(edit).await {
        Ok(done) => done,
        Err(error) => Err(EditError::Write {
            reason: error.to_string(),
        }),
    }
}

fn refused(error: WriteError) -> EditError {
    match error {
        WriteError::Find { .. } => EditError::Find,
        WriteError::Refuse(problems) => EditError::Check {
            problems: problems
                .into_iter()
                .map(|problem| {
                    let place = problem
                        .file
                        .map(|file| format!("{file}:{} ", problem.line))
                        .unwrap_or_default();
                    Problem::new(problem.path, format!("{place}{}", problem.message))
                })
                .collect(),
        },
        other => EditError::Write {
            reason: other.to_string(),
        },
    }
}
