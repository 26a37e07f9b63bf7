//! What the client says, with what to do about it.

use std::time::Duration;

use herald_crds::names::{self, Topic};
use jiff::Timestamp;
use pulsar::error::{ConnectionError, ConsumerError, ProducerError, ServiceDiscoveryError};
use pulsar::proto::ServerError;
use tokio::time::Instant;

use super::Settings;
use crate::broker::BrokerError;
use crate::clock;

/// What went wrong, as far as it matters what to do about it.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    kind: Kind,
    text: String,
}

/// How long what just failed is not tried again: whoever waited for the attempt gets its outcome, and not one of their
/// own, one after the other.
const RECENT: Duration = Duration::from_millis(250);

/// The last failure of something that many wait for.
#[derive(Default)]
pub(super) struct LastTrouble(Option<(Instant, Trouble)>);

impl LastTrouble {
    /// What it was, if it was just now.
    pub(super) fn recent(&self) -> Result<(), Trouble> {
        match &self.0 {
            Some((at, trouble)) if at.elapsed() < RECENT => Err(trouble.clone()),
            _ => Ok(()),
        }
    }

    /// Remembers it.
    pub(super) fn note(&mut self, trouble: &Trouble) {
        self.0 = Some((Instant::now(), trouble.clone()));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The backlog quota is reached.
    Full,
    /// There is no such topic.
    NoTopic,
    /// There is no such subscription.
    NoSubscription,
    /// The role may not do this.
    NotAllowed,
    /// The token is not believed.
    NotBelieved,
    /// The connection was refused; the client keeps the reason to itself.
    Refused,
    /// The address is none, or its host is not known.
    NoAddress,
    /// There never was a connection.
    Unreachable,
    Other,
}

impl Kind {
    fn of(error: ServerError, text: Option<&str>) -> Self {
        match error {
            ServerError::ProducerBlockedQuotaExceededError
            | ServerError::ProducerBlockedQuotaExceededException => Self::Full,
            ServerError::TopicNotFound => Self::NoTopic,
            ServerError::SubscriptionNotFound => Self::NoSubscription,
            ServerError::AuthorizationError => Self::NotAllowed,
            ServerError::AuthenticationError => Self::NotBelieved,
            // What a broker that could not look it up, or was not asked in time, says of a missing one.
            ServerError::MetadataError | ServerError::UnknownError if says_missing(text) => {
                Self::NoTopic
            }
            _ => Self::Other,
        }
    }
}

impl Trouble {
    pub(super) fn other(text: impl Into<String>) -> Self {
        Self {
            kind: Kind::Other,
            text: text.into(),
        }
    }

    pub(super) fn of(error: &pulsar::Error) -> Self {
        let kind = match server_error(error) {
            Some((error, text)) => Kind::of(error, text),
            None if is_refusal(error) => Kind::Refused,
            None if matches!(error, pulsar::Error::Connection(ConnectionError::NotFound)) => {
                Kind::NoAddress
            }
            None => Kind::Other,
        };
        Self {
            kind,
            text: error.to_string(),
        }
    }

    /// What went wrong with the first connection.
    pub(super) fn connecting(error: &pulsar::Error) -> Self {
        let mut trouble = Self::of(error);
        if trouble.kind == Kind::Other {
            trouble.kind = Kind::Unreachable;
        }
        trouble
    }

    /// The error of publishing to `topic`.
    pub(super) fn publishing(self, settings: &Settings, topic: &Topic) -> BrokerError {
        if self.kind == Kind::Full {
            return BrokerError::Full {
                reason: format!("the backlog quota of {topic} is reached"),
            };
        }
        let is_missing = self.kind == Kind::NoTopic;
        let (topic, reason) = (topic.clone(), self.advise(settings, topic, "produce"));
        if is_missing {
            BrokerError::Missing { topic, reason }
        } else {
            BrokerError::Publish { topic, reason }
        }
    }

    /// The error of anything else about `topic`.
    pub(super) fn receiving(self, settings: &Settings, topic: &Topic) -> BrokerError {
        let is_missing = self.kind == Kind::NoTopic;
        let (topic, reason) = (topic.clone(), self.advise(settings, topic, "consume"));
        if is_missing {
            BrokerError::Missing { topic, reason }
        } else {
            BrokerError::Receive { topic, reason }
        }
    }

    fn advise(self, settings: &Settings, topic: &Topic, action: &str) -> String {
        let Self { kind, text } = self;
        let tenant = &settings.tenant;
        match kind {
            // Whatever else is said of it: nothing works until it is replaced.
            Kind::NotBelieved | Kind::Refused | Kind::Unreachable | Kind::Other
                if let Some(end) = ended(settings) =>
            {
                format!("the token expired at {end}: replace it ({text})")
            }
            Kind::NoTopic => format!(
                "persistent://{tenant}/{topic} does not exist: it is the operator that makes topics ({text})"
            ),
            Kind::NoSubscription => format!(
                "persistent://{tenant}/{topic} has no subscription {}: it is the operator that makes topics with their subscriptions ({text})",
                names::subscription(topic).unwrap_or("of that name")
            ),
            Kind::NotAllowed => {
                let role = settings.token.claims().sub;
                let role = role.as_deref().unwrap_or("ROLE");
                format!(
                    "the token's role may not {action} on persistent://{tenant}/{topic}: grant it with `pulsar-admin topics grant-permission persistent://{tenant}/{topic} --role {role} --actions {action}` ({text})"
                )
            }
            Kind::NotBelieved => format!(
                "the token is not believed: is it this cluster's, and has it not expired? ({text})"
            ),
            Kind::Refused => format!(
                "the connection to {} was refused: is the token this cluster's, has it not expired, and is the broker's certificate, if it has one, signed by an authority in the CA file? ({text})",
                settings.url
            ),
            Kind::NoAddress => format!(
                "{} is no address of a broker: it has to be pulsar://HOST:PORT or pulsar+ssl://HOST:PORT, with a host name that can be looked up ({text})",
                settings.url
            ),
            Kind::Unreachable => format!(
                "there is no connection to {}: is that the broker's address, and is it up? ({text})",
                settings.url
            ),
            Kind::Full | Kind::Other => text,
        }
    }
}

/// When the token expired; `None` if it has not, or does not say.
fn ended(settings: &Settings) -> Option<Timestamp> {
    let end = Timestamp::from_second(settings.token.claims().exp?).ok()?;
    (end <= clock::now()).then_some(end)
}

/// Of all that can go wrong while connecting, what no further attempt would cure is told apart by this text alone.
fn is_refusal(error: &pulsar::Error) -> bool {
    error.to_string().contains("fatal error when connecting")
}

fn says_missing(text: Option<&str>) -> bool {
    text.is_some_and(|text| text.contains("not found") || text.contains("does not exist"))
}

/// What the broker itself answered, wherever in the client it came to light.
fn server_error(error: &pulsar::Error) -> Option<(ServerError, Option<&str>)> {
    let connection = match error {
        pulsar::Error::Connection(error)
        | pulsar::Error::Producer(ProducerError::Connection(error))
        | pulsar::Error::Consumer(ConsumerError::Connection(error))
        | pulsar::Error::ServiceDiscovery(ServiceDiscoveryError::Connection(error)) => error,
        pulsar::Error::ServiceDiscovery(ServiceDiscoveryError::Query(error, text)) => {
            return error.map(|error| (error, text.as_deref()));
        }
        _ => return None,
    };
    match connection {
        ConnectionError::PulsarError(error, text) => error.map(|error| (error, text.as_deref())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Token;
    use super::*;

    fn trouble(error: ServerError) -> Trouble {
        let error = ConnectionError::PulsarError(Some(error), Some("said so".to_owned()));
        Trouble::of(&pulsar::Error::Producer(ProducerError::Connection(error)))
    }

    fn settings() -> Settings {
        Settings {
            url: "pulsar://broker.example".to_owned(),
            tenant: "herald".to_owned(),
            // Claims: {"sub":"herald-gateway"}.
            token: Token::Fixed("header.eyJzdWIiOiJoZXJhbGQtZ2F0ZXdheSJ9.signature\n".to_owned()),
            ca: None,
            operation_timeout: Duration::from_secs(5),
        }
    }

    #[test]
    fn a_reached_quota_is_full_and_nothing_else_is() {
        let topic = names::events("shop/mail");
        for error in [
            ServerError::ProducerBlockedQuotaExceededError,
            ServerError::ProducerBlockedQuotaExceededException,
        ] {
            let error = trouble(error).publishing(&settings(), &topic);
            assert!(matches!(error, BrokerError::Full { .. }), "{error}");
        }
        let error = trouble(ServerError::PersistenceError).publishing(&settings(), &topic);
        assert!(matches!(error, BrokerError::Publish { .. }), "{error}");
    }

    #[test]
    fn who_waited_for_an_attempt_gets_its_outcome() {
        let mut last = LastTrouble::default();
        assert!(last.recent().is_ok());
        last.note(&trouble(ServerError::ServiceNotReady));
        assert!(last.recent().is_err());
        last.0 = last.0.map(|(at, trouble)| (at - RECENT, trouble));
        assert!(last.recent().is_ok());
    }

    #[test]
    fn an_error_says_what_to_do() {
        let topic = names::events("shop/mail");
        for (error, advice) in [
            (ServerError::TopicNotFound, "the operator"),
            (
                ServerError::AuthorizationError,
                "--role herald-gateway --actions consume",
            ),
            (ServerError::AuthenticationError, "expired"),
            (ServerError::SubscriptionNotFound, "subscription record"),
        ] {
            let told = trouble(error).receiving(&settings(), &topic);
            let is_missing = matches!(told, BrokerError::Missing { .. });
            assert_eq!(is_missing, error == ServerError::TopicNotFound);
            let text = told.to_string();
            assert!(text.contains(advice) && text.contains("said so"), "{text}");
        }
    }
}
