//! Who calls, and whether it may do what it asks for.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequestParts, MatchedPath, RawPathParams};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, header};

use super::Api;
use super::permissions;
use super::problem::{Kind, Problem};
use crate::accept::Scopes;
use crate::access::{Access, Denied, Right, Rights, Sender, Unknown};

/// Longest token: a Kubernetes one has somewhat more than 1,000 characters.
const LONGEST_TOKEN: usize = 8 * 1024;

/// Who calls, and may: as an argument of a handler it refuses callers whose token is not good with 401, and those that
/// may not do what [`permissions`] says of the call with 403.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Who it is.
    pub sender: Sender,
    /// The namespace of the call; empty if it has none.
    namespace: String,
}

impl Caller {
    /// Refuses with 403 unless the caller may do this too, to the thing called `name`, since the request says so; an
    /// empty name is no name.
    pub async fn require(&self, right: &Right, name: &str) -> Result<(), Problem> {
        let asked = self.sender.require(right, &self.namespace, name).await;
        asked.map_err(Problem::from)
    }

    /// Whether the caller may do this too, to the thing called `name`; an empty name is no name. An error if that cannot
    /// be told.
    pub async fn may(&self, right: &Right, name: &str) -> Result<bool, Problem> {
        match self.sender.require(right, &self.namespace, name).await {
            Ok(()) => Ok(true),
            Err(Denied::LackScope { .. } | Denied::LackPermission { .. }) => Ok(false),
            Err(denied @ (Denied::Ask { .. } | Denied::AskTooMuch)) => Err(denied.into()),
        }
    }

    /// Refuses with 403 unless the caller has an API key that may do everything.
    fn require_everything(&self) -> Result<(), Problem> {
        match &self.sender.rights {
            Rights::Scopes(scopes) if *scopes == Scopes::EVERYTHING => Ok(()),
            Rights::Reviewed(_) => Err(Problem::new(
                Kind::Forbidden,
                "this is about API keys, and callers are identities of Kubernetes here: give them a Role",
            )),
            Rights::Scopes(_) => Err(Problem::new(
                Kind::MissingScope,
                "this needs the scope \"*\", which the API key does not have",
            )),
        }
    }
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        let detail = denied.to_string();
        match denied {
            Denied::LackScope { .. } => Self::new(Kind::MissingScope, detail),
            Denied::LackPermission { .. } => Self::new(Kind::Forbidden, detail),
            Denied::Ask { .. } => {
                Self::new(Kind::Unavailable, detail).retry_after(Duration::from_secs(1))
            }
            Denied::AskTooMuch => {
                Self::new(Kind::RateLimited, detail).retry_after(Duration::from_secs(1))
            }
        }
    }
}

impl FromRequestParts<Arc<Api>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Problem> {
        let token = bearer(&parts.headers)?;
        let sender = match api.access.sender(token).await {
            Ok(sender) => sender,
            Err(Unknown::Reject { reason }) => return Err(unauthenticated(&reason, true)),
            Err(unknown @ Unknown::Ask { .. }) => {
                return Err(Problem::new(Kind::Unavailable, unknown.to_string())
                    .retry_after(Duration::from_secs(1)));
            }
        };
        let params = RawPathParams::from_request_parts(parts, api).await;
        let param = |name: &str| {
            let found = params.iter().flatten().find(|(param, _)| *param == name);
            found.map_or("", |(_, value)| value)
        };
        let caller = Self {
            sender,
            namespace: param("ns").to_owned(),
        };
        let path = parts.extensions.get::<MatchedPath>();
        let path = path.map_or("", MatchedPath::as_str);
        let Some(call) = permissions::of(&parts.method, path) else {
            return Err(Problem::new(
                Kind::Internal,
                "a defect of Herald's: it is not said who may do this",
            ));
        };
        if call.needs.is_empty() {
            caller.require_everything()?;
        }
        for need in call.needs.iter().filter(|need| need.is_of_path()) {
            caller.require(&need.right, param(need.name)).await?;
        }
        Ok(caller)
    }
}

/// Whether who came with this token may still do this: an answer that lasts asks now and then. While nobody can be asked,
/// what was said last counts, as it does for a call; once that is too old, who is not known to may does not.
pub async fn still_may(access: &dyn Access, token: &str, right: &Right, namespace: &str) -> bool {
    match access.sender(token).await {
        Ok(sender) => sender.require(right, namespace, "").await.is_ok(),
        Err(Unknown::Reject { .. } | Unknown::Ask { .. }) => false,
    }
}

/// The token of `Authorization: Bearer <token>` (RFC 6750, section 2.1).
pub(super) fn bearer(headers: &HeaderMap) -> Result<&str, Problem> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Err(unauthenticated(
            "the header \"Authorization: Bearer <token>\" is missing",
            false,
        ));
    };
    value
        .to_str()
        .ok()
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .filter(|token| !token.is_empty() && token.len() <= LONGEST_TOKEN)
        .ok_or_else(|| {
            unauthenticated(
                "the header Authorization must have the form \"Bearer <token>\"",
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
    use async_trait::async_trait;

    use super::*;
    use crate::access::rights;

    /// Knows one token, which may do what this says.
    struct One(Scopes);

    #[async_trait]
    impl Access for One {
        async fn sender(&self, token: &str) -> Result<Sender, Unknown> {
            let reason = "so it is".into();
            match token {
                "good" => Ok(Sender {
                    name: "one".into(),
                    rights: Rights::Scopes(self.0),
                }),
                "of whom?" => Err(Unknown::Ask { reason }),
                _ => Err(Unknown::Reject { reason }),
            }
        }

        fn service_account(&self, _: &str, _: &str) -> Rights {
            Rights::Scopes(self.0)
        }
    }

    #[tokio::test]
    async fn what_lasts_ends_with_the_right_or_the_token_or_once_neither_can_be_told() {
        let (all, none) = (One(Scopes::EVERYTHING), One(Scopes::default()));
        let may = async |access: &One, token| {
            still_may(access, token, &rights::LIST_NOTIFICATIONS, "shop").await
        };
        assert!(may(&all, "good").await);
        assert!(!may(&all, "of whom?").await);
        assert!(!may(&all, "expired").await);
        assert!(!may(&none, "good").await);
    }

    #[test]
    fn who_asks_too_much_is_told_so_and_not_that_herald_is_away() {
        let kind = |denied: Denied| Problem::from(denied).kind();
        assert_eq!(kind(Denied::AskTooMuch), Kind::RateLimited);
        let reason = "so it is".into();
        assert_eq!(kind(Denied::Ask { reason }), Kind::Unavailable);
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
