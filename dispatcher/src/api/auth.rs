//! Who calls: API keys.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, header};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex, RwLock};

use super::Api;
use super::problem::{Kind, Problem};
use crate::accept::{Scope, Scopes, Sender};
use crate::store::{ApiKey, Store};

/// How long keys may be used before the store is asked again: a key that was taken away works no longer than this.
const FRESH: Duration = Duration::from_secs(30);

/// How often an unknown key may make the store be asked.
const UNKNOWN: Duration = Duration::from_secs(1);

/// The API keys, in memory.
pub struct Keys {
    store: Arc<dyn Store>,
    /// Keys that are not in the store: from the environment.
    fixed: Vec<Known>,
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
                scopes: Scopes::from_names(key.scopes.iter().map(String::as_str)),
            },
        }
    }
}

impl Keys {
    /// Keys of the store, and those that the environment gave.
    pub fn new(store: Arc<dyn Store>, fixed: &[ApiKey]) -> Self {
        Self {
            store,
            fixed: fixed.iter().map(Known::from).collect(),
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
    pub async fn sender(&self, key: &str) -> Option<Sender> {
        let digest = Self::digest(key);
        if let Some(sender) = find(&self.fixed, &digest) {
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
        self.fixed.iter().any(|known| &*known.sender.name == name)
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

/// Who calls. As an argument of a handler it refuses callers without a valid key with 401.
#[derive(Debug, Clone)]
pub struct Caller(pub Sender);

impl Caller {
    /// Refuses with 403, naming the scope, unless the key has it.
    pub fn require(&self, scope: Scope) -> Result<(), Problem> {
        if self.0.scopes.allow(scope) {
            return Ok(());
        }
        Err(missing_scope(scope))
    }

    /// Refuses with 403 unless the key may do everything.
    pub fn require_everything(&self) -> Result<(), Problem> {
        if self.0.scopes == Scopes::EVERYTHING {
            return Ok(());
        }
        Err(Problem::new(
            Kind::MissingScope,
            "this needs the scope \"*\", which the API key does not have",
        ))
    }
}

/// The key lacks `scope`.
pub(super) fn missing_scope(scope: Scope) -> Problem {
    Problem::new(
        Kind::MissingScope,
        format!(
            "this needs the scope {scope:?}, which the API key does not have",
            scope = scope.as_str()
        ),
    )
}

impl FromRequestParts<Arc<Api>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Problem> {
        let key = bearer(&parts.headers)?;
        match api.keys.sender(key).await {
            Some(sender) => Ok(Self(sender)),
            None => Err(unauthenticated("this API key is not known", true)),
        }
    }
}

/// The token of `Authorization: Bearer <token>` (RFC 6750, section 2.1).
fn bearer(headers: &HeaderMap) -> Result<&str, Problem> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Err(unauthenticated(
            "the header \"Authorization: Bearer <API key>\" is missing",
            false,
        ));
    };
    value
        .to_str()
        .ok()
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .filter(|token| !token.is_empty() && token.len() <= 1024)
        .ok_or_else(|| {
            unauthenticated(
                "the header Authorization must have the form \"Bearer <API key>\"",
                true,
            )
        })
}

fn unauthenticated(detail: &str, given: bool) -> Problem {
    let challenge = if given {
        r#"Bearer realm="herald", error="invalid_token""#
    } else {
        r#"Bearer realm="herald""#
    };
    Problem::new(Kind::Unauthenticated, detail).header(
        header::WWW_AUTHENTICATE,
        HeaderValue::from_static(challenge),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(name: &str, key: &str) -> Known {
        Known {
            digest: Keys::digest(key),
            sender: Sender {
                name: name.into(),
                scopes: Scopes::default(),
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

    #[test]
    fn only_a_bearer_token_counts_and_the_scheme_is_read_in_any_case() {
        let mut headers = HeaderMap::new();
        assert!(bearer(&headers).is_err());
        for (value, token) in [
            ("Bearer k", Some("k")),
            ("bearer  k ", Some("k")),
            ("Basic k", None),
            ("Bearer", None),
            ("Bearer ", None),
            ("k", None),
        ] {
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
            assert_eq!(bearer(&headers).ok(), token, "{value}");
        }
    }
}
