//! Who calls, and what it may do, by the API server of a cluster: tokens for our audience, and RBAC.
//!
//! # Layout
//!
//! - This file: the seam's side of Kubernetes.
//! - `reviews`: what is asked of the API server. `remembered`: its answers, for a while.
//! - `token`: tokens, checked without it.
//!
//! While the API server is away, tokens are checked against the keys with which the cluster signs, as they were fetched last,
//! and decisions of the last 15 minutes count.

mod remembered;
mod reviews;
#[cfg(test)]
mod tests;
mod token;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use jiff::Timestamp;
use kube::Client;
use sha2::{Digest, Sha256};
use tokio_util::task::AbortOnDropHandle;

use self::remembered::{Clock, Remembered};
use self::reviews::{ApiServer, Identity, Reviewed, Reviews};
use self::token::{Claims, Keys};
use super::keys::FixedKeys;
use super::shares::Shares;
use super::{Access, CannotTell, Review, Right, Rights, Sender, Unknown};
use crate::clock;

/// The audience that tokens for Herald have, unless set otherwise.
pub const AUDIENCE: &str = "herald";

/// How long a yes counts before it is asked for again: what is taken away works no longer than this.
const YES: Duration = Duration::from_mins(1);

/// How long a no counts: what is given works after this.
const NO: Duration = Duration::from_secs(10);

/// Tokens that are remembered.
const TOKENS: usize = 10_000;

/// Decisions that are remembered.
const DECISIONS: usize = 50_000;

/// Questions about one user that are under way at a time: of those that the API server is asked at a time, a small part.
const OF_ONE_USER: usize = 8;

/// Questions about one user that are under way or wait for that; a batch has half as many at a time.
const IN_LINE: usize = 512;

/// How long a question waits for others about the same user: longer than the API server may take for one, so that this
/// is over only if there are too many, and not if nobody answers.
const TURN: Duration = reviews::ANSWER.saturating_add(Duration::from_millis(500));

/// How often the keys are fetched with which the cluster signs.
const KEYS: Duration = Duration::from_mins(10);

/// How soon they are fetched again when that failed.
const KEYS_AGAIN: Duration = Duration::from_secs(10);

/// Tokens and RBAC of a cluster.
pub struct KubernetesAccess {
    audience: Arc<str>,
    /// API keys beside the tokens, for those who set Herald up.
    fixed: FixedKeys,
    tokens: Remembered<[u8; 32], Reviewed>,
    authority: Arc<Authority>,
    /// With which the cluster signs, as they were fetched last.
    signing: Arc<RwLock<Arc<Keys>>>,
    _fetching: AbortOnDropHandle<()>,
}

/// Decides, and remembers what was decided.
struct Authority {
    reviews: Arc<dyn Reviews>,
    decisions: Remembered<Question, bool>,
    /// By the digest of who is asked about: nobody's questions keep others from being answered.
    turns: Arc<Shares<[u8; 32]>>,
}

/// A question that was decided.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Question {
    /// The digest of who asks.
    who: [u8; 32],
    right: Right,
    namespace: Box<str>,
    name: Box<str>,
}

impl KubernetesAccess {
    /// Asks the API server; beside the tokens these API keys are known. Needs a tokio runtime.
    pub fn new(client: Client, audience: &str, fixed: FixedKeys) -> Self {
        let clock: Clock = Arc::new(Instant::now);
        Self::with(Arc::new(ApiServer::new(client)), audience, fixed, &clock)
    }

    fn with(reviews: Arc<dyn Reviews>, audience: &str, fixed: FixedKeys, clock: &Clock) -> Self {
        let signing = Arc::default();
        let fetching = tokio::spawn(fetch(Arc::clone(&reviews), Arc::clone(&signing)));
        Self {
            audience: audience.into(),
            fixed,
            tokens: Remembered::new(TOKENS, Arc::clone(clock)),
            authority: Arc::new(Authority {
                reviews,
                decisions: Remembered::new(DECISIONS, Arc::clone(clock)),
                turns: Shares::new(OF_ONE_USER, IN_LINE),
            }),
            signing,
            _fetching: AbortOnDropHandle::new(fetching),
        }
    }

    fn signing(&self) -> Arc<Keys> {
        Arc::clone(&self.signing.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Who shows a token that may be good.
    async fn identify(
        &self,
        token: &str,
        claims: &Claims,
        now: Timestamp,
    ) -> Result<Reviewed, CannotTell> {
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let fresh = |reviewed: &Reviewed| match reviewed {
            Reviewed::Known(_) => YES,
            Reviewed::Rejected(_) => NO,
        };
        // Anybody can make up tokens: those cost the API server nothing, and take no good one's place in memory.
        let ask = async {
            if self.signing().is_forged(token, claims) {
                let reason = "it is forged".into();
                return Err(CannotTell::Away { reason });
            }
            self.authority.reviews.token(token, &self.audience).await
        };
        let answer = self.tokens.get(&key, fresh, ask).await;
        let Err(cannot) = answer else {
            return answer;
        };
        let signing = self.signing();
        match signing.verify(token, claims, now) {
            Ok(identity) => Ok(Reviewed::Known(Arc::new(identity))),
            Err(error) if signing.is_forged(token, claims) => {
                Ok(Reviewed::Rejected(error.to_string().into()))
            }
            Err(error) => {
                tracing::debug!(%error, "a token could not be checked without the API server");
                Err(cannot)
            }
        }
    }
}

#[async_trait]
impl Access for KubernetesAccess {
    async fn sender(&self, token: &str) -> Result<Sender, Unknown> {
        if let Some(sender) = self.fixed.holder(token) {
            return Ok(sender);
        }
        let now = clock::now();
        // What cannot be good costs the API server nothing.
        let claims =
            token::look(token, &self.audience, now).map_err(|refused| Unknown::Reject {
                reason: refused.to_string().into(),
            })?;
        match self.identify(token, &claims, now).await {
            Ok(Reviewed::Known(identity)) => Ok(Sender {
                name: identity.user.as_str().into(),
                rights: self.authority.rights(identity),
            }),
            Ok(Reviewed::Rejected(reason)) => Err(Unknown::Reject { reason }),
            Err(cannot) => Err(Unknown::Ask {
                reason: cannot.to_string().into(),
            }),
        }
    }

    fn service_account(&self, namespace: &str, name: &str) -> Rights {
        let identity = Identity::of_service_account(namespace, name);
        self.authority.rights(Arc::new(identity))
    }
}

impl Authority {
    fn rights(self: &Arc<Self>, identity: Arc<Identity>) -> Rights {
        Rights::Reviewed(Arc::new(User {
            digest: identity.digest(),
            identity,
            authority: Arc::clone(self),
        }))
    }
}

/// What one user may do.
struct User {
    identity: Arc<Identity>,
    digest: [u8; 32],
    authority: Arc<Authority>,
}

#[async_trait]
impl Review for User {
    async fn allows(&self, right: &Right, namespace: &str, name: &str) -> Result<bool, CannotTell> {
        let question = Question {
            who: self.digest,
            right: *right,
            namespace: namespace.into(),
            name: name.into(),
        };
        let Authority {
            reviews,
            decisions,
            turns,
        } = &*self.authority;
        let fresh = |allowed: &bool| if *allowed { YES } else { NO };
        let ask = async {
            let turn = turns.take(&self.digest, TURN).await;
            let _turn = turn.ok_or(CannotTell::TooMany)?;
            reviews.access(&self.identity, right, namespace, name).await
        };
        decisions.get(&question, fresh, ask).await
    }
}

/// Fetches the keys with which the cluster signs, again and again. Never ends.
async fn fetch(reviews: Arc<dyn Reviews>, signing: Arc<RwLock<Arc<Keys>>>) {
    loop {
        let pause = match reviews.keys().await {
            Ok(keys) => {
                let mut signing = signing.write().unwrap_or_else(PoisonError::into_inner);
                *signing = Arc::new(keys);
                KEYS
            }
            Err(error) => {
                tracing::warn!(
                    %error,
                    "the cluster's signing keys cannot be fetched at the moment; those that are known stay, trying again"
                );
                KEYS_AGAIN
            }
        };
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.8..1.0))).await;
    }
}
