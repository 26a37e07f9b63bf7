//! API keys: with a name and scopes, which count in every namespace.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex, RwLock};

use super::{Access, Rights, Sender, Unknown};
use crate::accept::Scopes;
use crate::store::{ApiKey, Store};

/// How long keys may be used before the store is asked again: a key that was taken away works no longer than this.
const FRESH: Duration = Duration::from_secs(30);

/// How often an unknown key may make the store be asked.
const UNKNOWN: Duration = Duration::from_secs(1);

/// The API keys, in memory.
pub struct Keys {
    store: Arc<dyn Store>,
    fixed: FixedKeys,
    cached: RwLock<Cached>,
    /// Held by whoever asks the store, so that only one does.
    asking: Mutex<()>,
}

struct Cached {
    keys: Arc<[Known]>,
    /// When the store was asked last; `None`: never.
    asked: Option<Instant>,
}

struct Known {
    digest: [u8; 32],
    sender: Sender,
}

impl From<&ApiKey> for Known {
    fn from(key: &ApiKey) -> Self {
        Self {
            digest: key.digest,
            sender: Sender {
                name: key.name.as_str().into(),
                rights: Rights::Scopes(Scopes::from_names(key.scopes.iter().map(String::as_str))),
            },
        }
    }
}

impl Keys {
    /// Keys of the store, and those that the environment gave.
    pub fn new(store: Arc<dyn Store>, fixed: &[ApiKey]) -> Self {
        Self {
            store,
            fixed: FixedKeys::new(fixed),
            cached: RwLock::new(Cached {
                keys: Arc::new([]),
                asked: None,
            }),
            asking: Mutex::new(()),
        }
    }

    /// A new key: 256 random bits, with a beginning by which scanners for secrets know it.
    pub fn generate() -> String {
        let bits = rand::random::<[u8; 32]>();
        format!("hk_{}", BASE64_URL_SAFE_NO_PAD.encode(bits))
    }

    /// What is kept of a key instead of the key.
    pub fn digest(key: &str) -> [u8; 32] {
        Sha256::digest(key.as_bytes()).into()
    }

    /// Whose key this is; `None`: nobody's. With the store away, the keys that were last known count.
    async fn holder(&self, key: &str) -> Option<Sender> {
        let digest = Self::digest(key);
        if let Some(sender) = find(&self.fixed.0, &digest) {
            return Some(sender);
        }
        let (found, age) = self.cached(&digest).await;
        let enough = if found.is_some() { FRESH } else { UNKNOWN };
        if age.is_some_and(|age| age < enough) {
            return found;
        }
        self.refresh(enough).await;
        self.cached(&digest).await.0
    }

    /// Whether a key that is not in the store has this name.
    pub fn is_fixed(&self, name: &str) -> bool {
        self.fixed.0.iter().any(|known| &*known.sender.name == name)
    }

    /// Asks the store now, since keys were made or taken away.
    pub async fn reread(&self) {
        self.refresh(Duration::ZERO).await;
    }

    async fn cached(&self, digest: &[u8; 32]) -> (Option<Sender>, Option<Duration>) {
        let cached = self.cached.read().await;
        (
            find(&cached.keys, digest),
            cached.asked.map(|at| at.elapsed()),
        )
    }

    /// Asks the store, unless somebody else did so less than `enough` ago.
    async fn refresh(&self, enough: Duration) {
        let _one = self.asking.lock().await;
        if let Some(asked) = self.cached.read().await.asked
            && asked.elapsed() < enough
        {
            return;
        }
        let answer = self.store.keys().await;
        let mut cached = self.cached.write().await;
        cached.asked = Some(Instant::now());
        match answer {
            Ok(keys) => cached.keys = keys.iter().map(Known::from).collect(),
            Err(error) => {
                tracing::warn!(%error, "API keys could not be read: those known so far count");
            }
        }
    }
}

#[async_trait]
impl Access for Keys {
    async fn sender(&self, token: &str) -> Result<Sender, Unknown> {
        self.holder(token).await.ok_or_else(|| Unknown::Reject {
            reason: "this API key is not known".into(),
        })
    }

    /// Whoever may change the folder may send what it says.
    fn service_account(&self, _: &str, _: &str) -> Rights {
        Rights::Scopes(Scopes::EVERYTHING)
    }
}

/// Keys that are not in the store: from the environment.
#[derive(Default)]
pub struct FixedKeys(Vec<Known>);

impl FixedKeys {
    /// These keys.
    pub fn new(keys: &[ApiKey]) -> Self {
        Self(keys.iter().map(Known::from).collect())
    }

    /// A key that may do everything; `None`: no key.
    pub fn of_environment(key: Option<&str>) -> Self {
        let known = |key: &str| Known {
            digest: Keys::digest(key),
            sender: Sender {
                name: "env".into(),
                rights: Rights::Scopes(Scopes::EVERYTHING),
            },
        };
        Self(key.map(known).into_iter().collect())
    }

    /// Whose key this is; `None`: nobody's.
    pub fn holder(&self, key: &str) -> Option<Sender> {
        find(&self.0, &Keys::digest(key))
    }
}

/// Looks at every key, and at all of each, so that the time says nothing about how near a guess was.
fn find(keys: &[Known], digest: &[u8; 32]) -> Option<Sender> {
    let mut found = None;
    for key in keys {
        let difference = key
            .digest
            .iter()
            .zip(digest)
            .fold(0, |all, (a, b)| all | (a ^ b));
        if std::hint::black_box(difference) == 0 {
            found = Some(&key.sender);
        }
    }
    found.cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(name: &str, key: &str) -> Known {
        Known {
            digest: Keys::digest(key),
            sender: Sender {
                name: name.into(),
                rights: Rights::Scopes(Scopes::default()),
            },
        }
    }

    #[test]
    fn a_key_is_found_among_others_and_a_similar_one_is_not() {
        let keys = [known("a", "one"), known("b", "two"), known("c", "three")];
        let name = |key| find(&keys, &Keys::digest(key)).map(|s| s.name.to_string());
        assert_eq!(name("two").as_deref(), Some("b"));
        assert_eq!(name("two ").as_deref(), None);
    }
}
