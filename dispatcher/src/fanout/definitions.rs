//! Definitions by hash: what a notification is rendered from, as it was when it was accepted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use herald_crds::render::Compiled;
use herald_crds::{Definition, RecipientGroupSpec};
use serde::de::DeserializeOwned;

use crate::catalog::Catalog;
use crate::message::DefinitionHash;
use crate::store::{Store, StoreError};

/// Definitions kept ready. Beyond, the one unused for longest is forgotten.
const MOST: usize = 256;

/// Most bytes of one definition, unpacked.
pub const MOST_BYTES: usize = 4 * 1024 * 1024;

/// A definition that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    /// It was never written down.
    #[error("the definition {hash} is not known")]
    Find {
        /// Its name.
        hash: DefinitionHash,
    },
    /// It is not what Herald wrote, or a program reads it that is too old.
    #[error("the definition {hash} cannot be read: {reason}")]
    Read {
        /// Its name.
        hash: DefinitionHash,
        /// What is wrong with it.
        reason: String,
    },
    /// The database.
    #[error(transparent)]
    Store(StoreError),
}

/// A definition ready to render from.
#[derive(Debug)]
pub struct Ready {
    /// Compiled.
    pub compiled: Arc<Compiled>,
    /// It may ask for a recipient's labels.
    pub needs_labels: bool,
}

/// The YAML groups of a request, by full name.
pub type Groups = std::collections::BTreeMap<String, RecipientGroupSpec>;

/// Definitions by hash, kept ready.
pub struct Definitions {
    store: Arc<dyn Store>,
    catalog: Arc<dyn Catalog>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    templates: HashMap<DefinitionHash, (Arc<Ready>, u64)>,
    uses: u64,
}

impl Definitions {
    /// None yet.
    pub fn new(store: Arc<dyn Store>, catalog: Arc<dyn Catalog>) -> Self {
        Self {
            store,
            catalog,
            kept: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The template definition of this name, from memory, from what is declared, or from SQL.
    pub async fn template(&self, hash: &DefinitionHash) -> Result<Arc<Ready>, DefinitionError> {
        if let Some(ready) = self.kept(hash) {
            return Ok(ready);
        }
        let declared = self.catalog.current();
        if let Some(template) = declared
            .templates
            .values()
            .find(|template| template.hash == *hash)
        {
            return Ok(self.keep(hash, Arc::clone(&template.compiled)));
        }
        let packed = self.packed(hash).await?;
        self.compile(hash, &packed)
    }

    /// The same from what a message carried, without SQL.
    pub fn carried(
        &self,
        hash: &DefinitionHash,
        packed: &str,
    ) -> Result<Arc<Ready>, DefinitionError> {
        match self.kept(hash) {
            Some(ready) => Ok(ready),
            None => self.compile(hash, &unbase64(hash, packed)?),
        }
    }

    /// The groups of this name.
    pub async fn groups(&self, hash: &DefinitionHash) -> Result<Groups, DefinitionError> {
        let packed = self.packed(hash).await?;
        unpack(hash, &packed)
    }

    async fn packed(&self, hash: &DefinitionHash) -> Result<Bytes, DefinitionError> {
        let found = self
            .store
            .definition(hash)
            .await
            .map_err(DefinitionError::Store)?;
        found.ok_or_else(|| DefinitionError::Find {
            hash: Arc::clone(hash),
        })
    }

    fn compile(&self, hash: &DefinitionHash, packed: &[u8]) -> Result<Arc<Ready>, DefinitionError> {
        let definition: Definition = unpack(hash, packed)?;
        let compiled = Compiled::without_samples(Arc::new(definition)).map_err(|problems| {
            DefinitionError::Read {
                hash: Arc::clone(hash),
                reason: problems
                    .first()
                    .map(ToString::to_string)
                    .unwrap_or_default(),
            }
        })?;
        Ok(self.keep(hash, Arc::new(compiled)))
    }

    fn kept(&self, hash: &DefinitionHash) -> Option<Arc<Ready>> {
        let mut kept = self.lock();
        kept.uses += 1;
        let uses = kept.uses;
        let (ready, used) = kept.templates.get_mut(hash)?;
        *used = uses;
        Some(Arc::clone(ready))
    }

    fn keep(&self, hash: &DefinitionHash, compiled: Arc<Compiled>) -> Arc<Ready> {
        let json = compiled.definition().canonical_json();
        let ready = Arc::new(Ready {
            needs_labels: json.contains("labels"),
            compiled,
        });
        let mut kept = self.lock();
        if kept.templates.len() >= MOST {
            let oldest = kept
                .templates
                .iter()
                .min_by_key(|(_, (_, used))| *used)
                .map(|(hash, _)| Arc::clone(hash));
            if let Some(oldest) = oldest {
                kept.templates.remove(&oldest);
            }
        }
        let uses = kept.uses;
        kept.templates
            .insert(Arc::clone(hash), (Arc::clone(&ready), uses));
        ready
    }
}

/// The bytes of a definition as SQL keeps it, from the text in which it travels.
pub fn unbase64(hash: &DefinitionHash, packed: &str) -> Result<Bytes, DefinitionError> {
    match BASE64_STANDARD.decode(packed) {
        Ok(bytes) => Ok(Bytes::from(bytes)),
        Err(error) => Err(DefinitionError::Read {
            hash: Arc::clone(hash),
            reason: error.to_string(),
        }),
    }
}

fn unpack<T: DeserializeOwned>(hash: &DefinitionHash, packed: &[u8]) -> Result<T, DefinitionError> {
    let read = |reason: String| DefinitionError::Read {
        hash: Arc::clone(hash),
        reason,
    };
    let json =
        zstd::bulk::decompress(packed, MOST_BYTES).map_err(|error| read(error.to_string()))?;
    serde_json::from_slice(&json).map_err(|error| read(error.to_string()))
}
