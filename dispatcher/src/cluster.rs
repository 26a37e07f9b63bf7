//! What a process takes from the cluster it runs in: what is declared, and who may call. It writes nothing there.

use std::sync::Arc;

use kube::{Client, Config};

use crate::access::keys::FixedKeys;
use crate::access::kubernetes::{AUDIENCE, KubernetesAccess};
use crate::catalog::kubernetes::KubernetesCatalog;
use crate::catalog::kubernetes::secrets::SecretsWatch;
use crate::provider::credentials::Held;
use crate::provider::tls;

/// What of a cluster matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// The namespaces whose resources count; empty: all.
    pub namespaces: Vec<String>,
    /// The audience of senders' tokens; `None`: `herald`.
    pub audience: Option<String>,
}

/// The cluster cannot be spoken to: no place in it, and no kubeconfig either.
#[derive(Debug, thiserror::Error)]
#[error("no Kubernetes here: {reason}")]
pub struct ConnectError {
    /// Why.
    pub reason: String,
}

/// The cluster that this process runs in, else the one of the kubeconfig.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    options: Options,
}

impl Cluster {
    /// Makes a client; asks nobody yet.
    pub async fn connect(options: Options) -> Result<Self, ConnectError> {
        tls::install_crypto();
        let refused = |reason: String| ConnectError { reason };
        let config = Config::infer().await;
        let config = config.map_err(|error| refused(error.to_string()))?;
        let client = Client::try_from(config).map_err(|error| refused(error.to_string()))?;
        Ok(Self { client, options })
    }

    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The namespace that this process is in.
    pub fn own_namespace(&self) -> &str {
        self.client.default_namespace()
    }

    /// What is declared, once all of it was listed: as long as the API server is away, that is awaited.
    pub async fn catalog(&self) -> Arc<KubernetesCatalog> {
        let catalog = KubernetesCatalog::watch(&self.client, &self.options.namespaces);
        catalog.listed().await;
        Arc::new(catalog)
    }

    /// Keeps `held` like the Secrets of the own namespace that are labelled as credentials; they were listed once.
    pub async fn secrets(&self, held: &Arc<Held>) -> SecretsWatch {
        let secrets = SecretsWatch::begin(&self.client, self.own_namespace(), Arc::clone(held));
        secrets.listed().await;
        secrets
    }

    /// Who may call: whoever has a token of the cluster or this API key, which may do everything.
    pub fn access(&self, api_key: Option<&str>) -> Arc<KubernetesAccess> {
        let audience = self.options.audience.as_deref().unwrap_or(AUDIENCE);
        let fixed = FixedKeys::of_environment(api_key);
        Arc::new(KubernetesAccess::new(self.client.clone(), audience, fixed))
    }
}

#[cfg(test)]
pub(crate) mod scripted;
