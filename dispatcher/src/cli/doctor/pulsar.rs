//! Whether Pulsar answers, and lets in who has to be let in.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use herald_crds::names;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::ListParams;
use kube::{Api, Client};
use reqwest::StatusCode;
use serde_json::Value;

use super::{ANSWER, Found, in_time};

/// Where Pulsar's administration is, and as whom to ask.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Place {
    /// The administration of Pulsar, http://… or https://…
    #[arg(
        long = "pulsar-admin-url",
        env = "HERALD_PULSAR_ADMIN_URL",
        value_name = "URL"
    )]
    pub(super) admin_url: Option<String>,
    /// A file with the token for Pulsar.
    #[arg(
        long = "pulsar-token-file",
        env = "HERALD_PULSAR_TOKEN_FILE",
        value_name = "FILE"
    )]
    pub(super) token_file: Option<PathBuf>,
    /// A file with the authorities that may have signed Pulsar's certificate [default: the system's]
    #[arg(
        long = "pulsar-ca-file",
        env = "HERALD_PULSAR_CA_FILE",
        value_name = "FILE"
    )]
    pub(super) ca_file: Option<PathBuf>,
    /// The role that gateways have in Pulsar: asked whether it may use each namespace with Channels
    #[arg(
        long = "pulsar-gateway-role",
        env = "HERALD_PULSAR_GATEWAY_ROLE",
        value_name = "ROLE"
    )]
    pub(super) gateway_role: Option<String>,
    /// The tenant in which all topics are.
    #[arg(
        long = "pulsar-tenant",
        env = "HERALD_PULSAR_TENANT",
        value_name = "NAME",
        default_value = "herald"
    )]
    pub(super) tenant: String,
}

/// Looks at it, and at what is granted in the namespaces that have Channels; `cluster` is the one that it should work for.
pub(super) async fn check(
    place: &Place,
    cluster: &Client,
    namespaces: &BTreeSet<String>,
) -> Vec<Found> {
    let Some(url) = &place.admin_url else {
        return vec![Found::neither(
            "not looked at: --pulsar-admin-url says where it is",
        )];
    };
    let token = match place.token_file.as_deref().map(std::fs::read_to_string) {
        None => None,
        Some(Ok(token)) => Some(token),
        Some(Err(error)) => {
            return vec![Found::bad(format!("the token cannot be read: {error}"))];
        }
    };
    let http = match http(place) {
        Ok(http) => http,
        Err(reason) => return vec![Found::bad(reason)],
    };
    let get = async |path: &str| {
        let mut request = http.get(format!("{}/admin/v2/{path}", url.trim_end_matches('/')));
        if let Some(token) = &token {
            request = request.bearer_auth(token.trim());
        }
        request.send().await
    };
    let version = match get("brokers/version").await {
        Ok(answer) if answer.status().is_success() => {
            let version = answer.text().await.unwrap_or_default();
            Found::good(format!("version {}", version.trim()))
        }
        Ok(answer) => Found::bad(format!(
            "{url} answers {} to whoever asks for its version",
            answer.status()
        )),
        Err(error) => {
            return vec![Found::bad(format!(
                "{url} does not answer: {}",
                error.without_url()
            ))];
        }
    };
    let tenant = &place.tenant;
    let tenants = match get(&format!("namespaces/{tenant}")).await {
        Ok(answer) => match answer.status() {
            StatusCode::OK => {
                let namespaces: Value = answer.json().await.unwrap_or_default();
                let number = namespaces.as_array().map_or(0, Vec::len);
                Found::good(format!("tenant {tenant} has {number} namespaces"))
            }
            StatusCode::UNAUTHORIZED => Found::bad("the token is not good, or there is none"),
            StatusCode::FORBIDDEN => Found::neither(format!(
                "the token may not list the namespaces of tenant {tenant}: a gateway need not, the operator must"
            )),
            StatusCode::NOT_FOUND => Found::bad(format!(
                "there is no tenant {tenant}: the operator makes it if it may, else whoever administers Pulsar"
            )),
            other => Found::bad(format!("the namespaces of tenant {tenant}: {other}")),
        },
        Err(error) => Found::bad(format!("{url} does not answer: {}", error.without_url())),
    };
    let path = format!("namespaces/{tenant}/{}/properties", names::SYSTEM_NAMESPACE);
    let owner = match get(&path).await {
        Ok(answer) if answer.status().is_success() => {
            let properties: BTreeMap<String, String> = answer.json().await.unwrap_or_default();
            properties.get(names::CLUSTER_PROPERTY).cloned()
        }
        // It is not there yet, or not for whoever asks to see: the list above tells.
        _ => None,
    };
    let mut found = vec![version, tenants];
    if let Some(owner) = owner {
        found.push(whose(&owner, tenant, cluster).await);
    }
    let Some(role) = &place.gateway_role else {
        return found;
    };
    let mut granted = 0;
    for namespace in namespaces {
        let namespace = format!("{tenant}/{namespace}");
        let answer = get(&format!("namespaces/{namespace}/permissions")).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                let error = error.without_url();
                found.push(Found::bad(format!("who may use {namespace}: {error}")));
                return found;
            }
        };
        found.push(match answer.status() {
            StatusCode::OK => {
                let all = answer.json::<BTreeMap<String, BTreeSet<String>>>().await;
                let may = all.unwrap_or_default().remove(role).unwrap_or_default();
                if ["produce", "consume"].iter().all(|action| may.contains(*action)) {
                    granted += 1;
                    continue;
                }
                Found::bad(format!(
                    "role {role} may not produce and consume in {namespace}: the operator grants it with the first Channel \
                     that becomes Ready"
                ))
            }
            StatusCode::NOT_FOUND => Found::bad(format!(
                "there is no namespace {namespace}: the operator makes it with the first Channel that becomes Ready"
            )),
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => {
                found.push(Found::neither(format!(
                    "the token may not see who may use {namespace}: the operator's may"
                )));
                return found;
            }
            other => Found::bad(format!("who may use {namespace}: {other}")),
        });
    }
    let all = namespaces.len();
    found.push(Found::good(format!(
        "role {role} may use {granted} of {all} namespaces with Channels"
    )));
    found
}

fn http(place: &Place) -> Result<reqwest::Client, String> {
    let mut builder = reqwest::Client::builder()
        .timeout(ANSWER)
        .redirect(reqwest::redirect::Policy::limited(3));
    if let Some(file) = &place.ca_file {
        let unreadable = |error: &dyn std::fmt::Display| {
            format!(
                "the authorities in {} cannot be read: {error}",
                file.display()
            )
        };
        let pem = std::fs::read(file).map_err(|error| unreadable(&error))?;
        let authorities = reqwest::Certificate::from_pem_bundle(&pem);
        builder = builder.tls_certs_only(authorities.map_err(|error| unreadable(&error))?);
    }
    builder.build().map_err(|error| error.to_string())
}

/// Whether the topics of requests are of the cluster that is looked at.
async fn whose(owner: &str, tenant: &str, client: &Client) -> Found {
    let namespaces = Api::<Namespace>::all(client.clone());
    // Who may list them may not get one.
    let wanted = ListParams::default().fields("metadata.name=kube-system");
    match in_time(namespaces.list_metadata(&wanted)).await {
        Ok(found) => {
            let uid = found.items.into_iter().find_map(|found| found.metadata.uid);
            judge(owner, &uid.unwrap_or_default(), tenant)
        }
        Err(error) => Found::neither(format!(
            "whether tenant {tenant} is this cluster's is not known: {error}"
        )),
    }
}

fn judge(owner: &str, cluster: &str, tenant: &str) -> Found {
    if owner == cluster {
        return Found::good(format!(
            "the requests in tenant {tenant} are this cluster's"
        ));
    }
    Found::bad(format!(
        "the requests in tenant {tenant} are another cluster's ({owner}): each cluster needs a tenant of its own"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::State;

    #[test]
    fn a_tenant_that_another_cluster_uses_is_bad() {
        assert_eq!(judge("a", "a", "herald").state, State::Good);
        let bad = judge("b", "a", "herald");
        assert_eq!(bad.state, State::Bad);
        assert!(bad.text.contains("(b)"), "{}", bad.text);
    }
}
