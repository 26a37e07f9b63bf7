//! What is asked of the API server: who shows a token, and what somebody may do.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::token::Keys;
use crate::access::rights::GROUP;
use crate::access::{CannotTell, Right};

/// How long the API server may take to answer.
pub(super) const ANSWER: Duration = Duration::from_secs(3);

/// When it has not answered, nobody waits for it again for so long.
const SILENT: Duration = Duration::from_secs(2);

/// Questions of a kind under way at a time; more wait.
const AT_A_TIME: usize = 32;

/// Longest list of keys, in bytes.
const LONGEST_KEYS: usize = 256 * 1024;

/// What is said below this of somebody is of one token: its id, the pod and the node that it was made for.
const OF_ONE_TOKEN: &str = "authentication.kubernetes.io/";

/// Who somebody is, as Kubernetes says it.
#[derive(Debug, Clone, Default)]
pub(super) struct Identity {
    pub user: String,
    pub uid: Option<String>,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
    /// Of all of this, once somebody wanted it.
    digest: OnceLock<[u8; 32]>,
}

impl Identity {
    /// A service account, in the groups that each of them is in.
    pub(super) fn of_service_account(namespace: &str, name: &str) -> Self {
        Self {
            user: format!("system:serviceaccount:{namespace}:{name}"),
            groups: vec![
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{namespace}"),
                "system:authenticated".to_owned(),
            ],
            ..Self::default()
        }
    }

    /// Tells it from every other, whichever of its tokens it shows: RBAC decides on no token, and a new one may have to be
    /// taken while nobody can be asked.
    pub(super) fn digest(&self) -> [u8; 32] {
        let Self {
            user,
            uid,
            groups,
            extra,
            digest,
        } = self;
        *digest.get_or_init(|| {
            let mut groups: Vec<_> = groups.iter().collect();
            groups.sort_unstable();
            let extra = extra.iter();
            let extra: BTreeMap<_, _> = extra
                .filter(|(key, _)| !key.starts_with(OF_ONE_TOKEN))
                .collect();
            let all = (user, uid, groups, extra);
            Sha256::digest(serde_json::to_vec(&all).unwrap_or_default()).into()
        })
    }
}

impl From<UserInfo> for Identity {
    fn from(info: UserInfo) -> Self {
        let UserInfo {
            username,
            uid,
            groups,
            extra,
        } = info;
        Self {
            user: username.unwrap_or_default(),
            uid,
            groups: groups.unwrap_or_default(),
            extra: extra.unwrap_or_default(),
            digest: OnceLock::new(),
        }
    }
}

/// What came of a token.
#[derive(Debug, Clone)]
pub(super) enum Reviewed {
    /// It is good, and this one's.
    Known(Arc<Identity>),
    /// It is not good.
    Rejected(Arc<str>),
}

/// Whoever is asked.
#[async_trait]
pub(super) trait Reviews: Send + Sync {
    /// Who shows a token that is for `audience`.
    async fn token(&self, token: &str, audience: &str) -> Result<Reviewed, CannotTell>;

    /// Whether somebody may do this to the thing called `name`; an empty name is no name.
    async fn access(
        &self,
        who: &Identity,
        right: &Right,
        namespace: &str,
        name: &str,
    ) -> Result<bool, CannotTell>;

    /// The keys with which tokens are signed.
    async fn keys(&self) -> Result<Keys, CannotTell>;
}

/// The API server.
pub(super) struct ApiServer {
    client: Client,
    /// Whose a token is. Anybody can make one up, so such questions keep none of the others waiting.
    tokens: Semaphore,
    /// What somebody who is known may do, and the keys.
    rights: Semaphore,
    /// When it did not answer the last time; `None`: it did.
    silent: Mutex<Option<Instant>>,
}

impl ApiServer {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            tokens: Semaphore::new(AT_A_TIME),
            rights: Semaphore::new(AT_A_TIME),
            silent: Mutex::default(),
        }
    }

    /// The answer to a question, if it comes in time.
    async fn answer<T>(
        &self,
        places: &Semaphore,
        asked: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, CannotTell> {
        let check = || {
            let silent = *self.silent();
            if silent.is_some_and(|since| since.elapsed() < SILENT) {
                return Err(cannot("the API server does not answer".to_owned()));
            }
            Ok(())
        };
        check()?;
        // To wait for one's turn says nothing of the API server.
        let place = tokio::time::timeout(ANSWER, places.acquire()).await;
        let Ok(_place) = place else {
            return Err(cannot("too many ask the API server".to_owned()));
        };
        // Those before may have waited in vain.
        check()?;
        let (answer, answers) = match tokio::time::timeout(ANSWER, asked).await {
            Ok(Ok(answer)) => (Ok(answer), true),
            Ok(Err(error)) => {
                let answers = matches!(error, kube::Error::Api(_));
                (Err(cannot(format!("the API server: {error}"))), answers)
            }
            Err(_) => {
                let reason = format!(
                    "no answer from the API server within {} s",
                    ANSWER.as_secs()
                );
                (Err(cannot(reason)), false)
            }
        };
        *self.silent() = (!answers).then(Instant::now);
        answer
    }

    fn silent(&self) -> MutexGuard<'_, Option<Instant>> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn text(&self, path: &str) -> Result<String, CannotTell> {
        let request = axum::http::Request::get(path).body(Vec::new());
        let request = request.map_err(|error| cannot(error.to_string()))?;
        let text = self
            .answer(&self.rights, self.client.request_text(request))
            .await?;
        if text.len() > LONGEST_KEYS {
            return Err(cannot(format!(
                "{path} is longer than {LONGEST_KEYS} bytes"
            )));
        }
        Ok(text)
    }
}

#[async_trait]
impl Reviews for ApiServer {
    async fn token(&self, token: &str, audience: &str) -> Result<Reviewed, CannotTell> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(vec![audience.to_owned()]),
            },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let status = self
            .answer(&self.tokens, api.create(&PostParams::default(), &review))
            .await?;
        let status = status.status.unwrap_or_default();
        // One that does not know of audiences names none: its tokens are for the API server.
        let is_for_us = (status.audiences.iter().flatten()).any(|given| given == audience);
        Ok(match status.user {
            Some(user) if status.authenticated == Some(true) && is_for_us => {
                Reviewed::Known(Arc::new(user.into()))
            }
            _ => Reviewed::Rejected("the cluster does not know this token, or no longer".into()),
        })
    }

    async fn access(
        &self,
        who: &Identity,
        right: &Right,
        namespace: &str,
        name: &str,
    ) -> Result<bool, CannotTell> {
        let filled = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(who.user.clone()),
                uid: who.uid.clone(),
                groups: Some(who.groups.clone()),
                extra: Some(who.extra.clone()),
                resource_attributes: Some(ResourceAttributes {
                    group: Some(GROUP.to_owned()),
                    verb: Some(right.verb.to_string()),
                    resource: Some(right.resource.to_owned()),
                    subresource: filled(right.subresource),
                    namespace: filled(namespace),
                    name: filled(name),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let status = self
            .answer(&self.rights, api.create(&PostParams::default(), &review))
            .await?;
        Ok(status.status.is_some_and(|status| status.allowed))
    }

    async fn keys(&self) -> Result<Keys, CannotTell> {
        let configuration = self.text("/.well-known/openid-configuration").await?;
        let jwks = self.text("/openid/v1/jwks").await?;
        Keys::read(&configuration, &jwks).map_err(|error| cannot(error.to_string()))
    }
}

fn cannot(reason: String) -> CannotTell {
    CannotTell::Away {
        reason: reason.into(),
    }
}
