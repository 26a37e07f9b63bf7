//! Before the operator is uninstalled: every Channel is let go that it would have had to clean up after.
//!
//! The operator is taken to zero pods, and its Lease is held, so that nobody puts the finalizer on again meanwhile. The Lease
//! is not given back: it runs out by itself.

use herald_crds::{Channel, names};
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{ListParams, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::leader::Candidate;
use crate::settings::Settings;

/// Channels that are listed at a time.
const PAGE: u32 = 500;

/// Lets every Channel go that the operator would have to clean up after, and stops the operator: before it is uninstalled.
#[derive(Debug, clap::Args)]
pub struct Release {
    /// The operator's Deployment, in its own namespace.
    #[arg(long, value_name = "NAME", default_value = "herald-operator")]
    deployment: String,
}

/// What stands in the way.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// The operator goes on, and would put finalizers on again.
    #[error("cannot stop the operator, Deployment {name}: {source}")]
    StopOperator {
        /// Which Deployment.
        name: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// It is not known which Channels there are.
    #[error("cannot list Channels: {source}")]
    ListChannels {
        /// Why.
        source: Box<kube::Error>,
    },
    /// An operator works again.
    #[error(
        "the Lease was lost: an operator works again, or the API server could not be reached for too long"
    )]
    KeepLease,
    /// A Channel stays.
    #[error("cannot let Channel {name} go: {source}")]
    WriteFinalizers {
        /// Its full name.
        name: String,
        /// Why.
        source: Box<kube::Error>,
    },
}

impl ReleaseError {
    /// Whether somebody may not do what there is to be done.
    fn is_forbidden(&self) -> bool {
        let (Self::StopOperator { source, .. }
        | Self::ListChannels { source }
        | Self::WriteFinalizers { source, .. }) = self
        else {
            return false;
        };
        matches!(&**source, kube::Error::Api(status) if status.code == 403)
    }
}

/// Stops the operator, and takes its finalizer off every Channel. Answers how many had it.
pub async fn release(
    args: &Release,
    settings: &Settings,
    client: Client,
) -> Result<usize, ReleaseError> {
    stop_operator(&client, settings.namespace(), &args.deployment).await?;
    let identity = format!("uninstall-{:08x}", rand::random::<u32>());
    let mut candidate = Candidate::new(
        client.clone(),
        settings.namespace(),
        identity,
        settings.lease(),
    );
    candidate.win().await;
    let term = candidate.term();
    let client = term.fence(client);
    let never = CancellationToken::new();
    tokio::select! {
        // What failed then failed for this.
        released = release_everywhere(settings, &client) => match released {
            Err(_) if !term.lasts() => Err(ReleaseError::KeepLease),
            released => released,
        },
        _ = candidate.keep(&never) => Err(ReleaseError::KeepLease),
    }
}

/// Also where the operator does not look any more: a namespace may have been taken out of those that are watched. Who may not
/// ask for all Channels asks where the operator looks.
async fn release_everywhere(settings: &Settings, client: &Client) -> Result<usize, ReleaseError> {
    let watched = &settings.watch_namespaces;
    match release_all(watched, client, &Api::all(client.clone())).await {
        Err(error) if error.is_forbidden() && !watched.is_empty() => {
            tracing::info!(%error, "only the namespaces that are watched are looked through");
        }
        released => return released,
    }
    let mut released = 0;
    for namespace in watched {
        let channels = Api::namespaced(client.clone(), namespace);
        released += release_all(watched, client, &channels).await?;
    }
    Ok(released)
}

/// One that is gone already needs no stopping.
async fn stop_operator(client: &Client, namespace: &str, name: &str) -> Result<(), ReleaseError> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let none = Patch::Merge(json!({"spec": {"replicas": 0}}));
    let stopped = deployments
        .patch_scale(name, &PatchParams::default(), &none)
        .await;
    match stopped {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(source) => Err(ReleaseError::StopOperator {
            name: name.to_owned(),
            source: Box::new(source),
        }),
    }
}

async fn release_all(
    watched: &[String],
    client: &Client,
    channels: &Api<Channel>,
) -> Result<usize, ReleaseError> {
    let is_watched = |channel: &PartialObjectMeta<Channel>| {
        watched.is_empty() || channel.namespace().is_some_and(|n| watched.contains(&n))
    };
    let mut page = ListParams::default().limit(PAGE);
    let mut released = 0;
    loop {
        let listed = channels.list_metadata(&page).await;
        let listed = match listed {
            Ok(listed) => listed,
            // The definition is gone, and with it every Channel.
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(released),
            Err(source) => {
                let source = Box::new(source);
                return Err(ReleaseError::ListChannels { source });
            }
        };
        for channel in &listed.items {
            match release_one(client, channel).await {
                Ok(was_held) => released += usize::from(was_held),
                // It may be somebody else's to let go.
                Err(error) if error.is_forbidden() && !is_watched(channel) => {
                    tracing::warn!(%error, "it is in a namespace that is not watched");
                }
                Err(error) => return Err(error),
            }
        }
        match listed.metadata.continue_ {
            Some(next) if !next.is_empty() => page = page.continue_token(&next),
            _ => return Ok(released),
        }
    }
}

/// Answers whether it had to be let go.
async fn release_one(
    client: &Client,
    channel: &PartialObjectMeta<Channel>,
) -> Result<bool, ReleaseError> {
    if !channel
        .finalizers()
        .iter()
        .any(|f| f == names::TOPICS_FINALIZER)
    {
        return Ok(false);
    }
    let (namespace, name) = (channel.namespace().unwrap_or_default(), channel.name_any());
    let others: Vec<_> = channel
        .finalizers()
        .iter()
        .filter(|f| *f != names::TOPICS_FINALIZER)
        .collect();
    // Only if it is still as it was seen: the list is written as a whole.
    let patch = json!({"metadata": {
        "finalizers": others,
        "uid": channel.uid(),
        "resourceVersion": channel.resource_version(),
    }});
    let api: Api<PartialObjectMeta<Channel>> = Api::namespaced(client.clone(), &namespace);
    let written = api
        .patch(&name, &PatchParams::default(), &Patch::Merge(&patch))
        .await;
    match written {
        Ok(_) => {
            tracing::info!(
                channel = format!("{namespace}/{name}"),
                "let go: its topics stay"
            );
            Ok(true)
        }
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(source) => Err(ReleaseError::WriteFinalizers {
            name: format!("{namespace}/{name}"),
            source: Box::new(source),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::Value;

    use super::*;
    use crate::fixtures::{ApiServer, document};

    const OTHERS: &str = "backup.example/hold";

    fn settings() -> Settings {
        Settings {
            watch_namespaces: vec!["shop".to_owned()],
            ..Settings::default()
        }
    }

    fn declare(server: &ApiServer, name: &str, finalizers: &[&str]) {
        let spec = json!({"medium": "email", "providers": [{"name": "log", "log": {}}]});
        let mut channel = document("Channel", name, &spec);
        channel["metadata"]["finalizers"] = json!(finalizers);
        server.declare(&channel);
    }

    fn finalizers(server: &ApiServer, name: &str) -> Value {
        server.get("Channel", name).unwrap()["metadata"]["finalizers"].clone()
    }

    fn args() -> Release {
        Release {
            deployment: "herald-operator".to_owned(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_channel_is_let_go_once_the_operator_is_told_to_stop() {
        let server = ApiServer::default();
        declare(&server, "mail", &[names::TOPICS_FINALIZER, OTHERS]);
        declare(&server, "sms", &[names::TOPICS_FINALIZER]);
        declare(&server, "hooks", &[OTHERS]);
        let released = release(&args(), &settings(), server.client()).await;
        assert_eq!(released.unwrap(), 2);
        assert_eq!(finalizers(&server, "mail"), json!([OTHERS]));
        assert_eq!(finalizers(&server, "sms"), json!([]));
        assert_eq!(finalizers(&server, "hooks"), json!([OTHERS]));
        let asked = server.wrote();
        assert_eq!(asked[0], "PATCH deployments/herald-operator/scale");
        assert_eq!(asked[1], "POST leases");
    }

    fn declare_outside(server: &ApiServer) {
        let spec = json!({"medium": "email", "providers": [{"name": "log", "log": {}}]});
        let mut channel = document("Channel", "outside", &spec);
        channel["metadata"]["namespace"] = json!("platform");
        channel["metadata"]["finalizers"] = json!([names::TOPICS_FINALIZER]);
        server.declare(&channel);
    }

    #[tokio::test(start_paused = true)]
    async fn a_channel_of_a_namespace_that_is_watched_no_more_is_let_go_too() {
        let server = ApiServer::default();
        declare(&server, "mail", &[names::TOPICS_FINALIZER]);
        declare_outside(&server);
        let released = release(&args(), &settings(), server.client()).await;
        assert_eq!(released.unwrap(), 2);
        assert_eq!(finalizers(&server, "mail"), json!([]));
        assert_eq!(finalizers(&server, "outside"), json!([]));
    }

    #[tokio::test(start_paused = true)]
    async fn with_roles_in_what_is_watched_alone_what_is_watched_is_let_go() {
        for refused in [
            "GET /apis/herald.dev/v1alpha1/channels",
            "PATCH channels/outside",
        ] {
            let server = ApiServer::default();
            declare(&server, "mail", &[names::TOPICS_FINALIZER]);
            declare_outside(&server);
            server.refuse(refused, 403);
            let released = release(&args(), &settings(), server.client()).await;
            assert_eq!(released.unwrap(), 1, "{refused}");
            assert_eq!(finalizers(&server, "mail"), json!([]), "{refused}");
            let held = json!([names::TOPICS_FINALIZER]);
            assert_eq!(finalizers(&server, "outside"), held, "{refused}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_let_go_while_an_operator_works() {
        let server = ApiServer::default();
        declare(&server, "mail", &[names::TOPICS_FINALIZER]);
        let settings = settings();
        let (name, lease) = ("working".to_owned(), settings.lease());
        let mut working = Candidate::new(server.client(), settings.namespace(), name, lease);
        working.win().await;
        let stop = CancellationToken::new();
        let works = working.keep(&stop);
        let args = args();
        let released = release(&args, &settings, server.client());
        let patience = Duration::from_mins(5);
        tokio::select! {
            _ = works => panic!("the Lease was lost"),
            waited = tokio::time::timeout(patience, released) => assert!(waited.is_err()),
        }
        assert_eq!(
            finalizers(&server, "mail"),
            json!([names::TOPICS_FINALIZER])
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_channel_that_cannot_be_let_go_is_named() {
        let server = ApiServer::default();
        declare(&server, "mail", &[names::TOPICS_FINALIZER]);
        server.refuse("PATCH channels/mail", 403);
        let refused = release(&args(), &settings(), server.client()).await;
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("shop/mail"), "{error}");
    }
}
