//! Tenants, namespaces, and who may use them.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use super::client::PulsarAdmin;
use super::error::{AdminError, RequestError};
use super::{Made, TopicName};

/// Most bundles, the units in which a namespace's topics are spread over brokers.
const BUNDLES: u32 = 16;

/// What a role may be allowed to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Publish.
    Produce,
    /// Subscribe and read.
    Consume,
}

/// What roles may do, by role. Actions that Herald never grants are left out.
pub type Permissions = BTreeMap<String, BTreeSet<Action>>;

impl PulsarAdmin {
    /// Makes a tenant that may use `clusters`, unless there is one already.
    pub async fn create_tenant(
        &self,
        tenant: &str,
        clusters: &[String],
    ) -> Result<Made, AdminError> {
        let body = serde_json::json!({"adminRoles": [], "allowedClusters": clusters});
        made(
            self.send(Method::PUT, &format!("tenants/{tenant}"), Some(&body))
                .await,
        )
        .map_err(|source| AdminError::CreateTenant {
            tenant: tenant.to_owned(),
            source,
        })
    }

    /// Makes a namespace, `tenant/namespace`, in `clusters`, unless there is one already.
    pub async fn create_namespace(
        &self,
        namespace: &str,
        clusters: &[String],
    ) -> Result<Made, AdminError> {
        let body = serde_json::json!({
            "bundles": {"numBundles": BUNDLES},
            "replication_clusters": clusters,
        });
        made(
            self.send(Method::PUT, &format!("namespaces/{namespace}"), Some(&body))
                .await,
        )
        .map_err(|source| AdminError::CreateNamespace {
            namespace: namespace.to_owned(),
            source,
        })
    }

    /// Deletes a namespace without topics; none is fine.
    pub async fn delete_namespace(&self, namespace: &str) -> Result<(), AdminError> {
        gone(
            self.send(
                Method::DELETE,
                &format!("namespaces/{namespace}"),
                None::<&()>,
            )
            .await,
        )
        .map_err(|source| AdminError::DeleteNamespace {
            namespace: namespace.to_owned(),
            source,
        })
    }

    /// Deletes a namespace if nothing is in it; answers whether it is gone.
    pub async fn delete_empty_namespace(&self, namespace: &str) -> Result<bool, AdminError> {
        match self.delete_namespace(namespace).await {
            Ok(()) => Ok(true),
            // 412: other clusters have it, too.
            Err(AdminError::DeleteNamespace { source, .. })
                if source.is(StatusCode::CONFLICT)
                    || source.is(StatusCode::PRECONDITION_FAILED) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// What is written down about a namespace; `None` if there is no such namespace.
    pub async fn properties(
        &self,
        namespace: &str,
    ) -> Result<Option<BTreeMap<String, String>>, AdminError> {
        match self
            .get(&format!("namespaces/{namespace}/properties"))
            .await
        {
            Ok(properties) => Ok(Some(properties)),
            Err(error) if error.is(StatusCode::NOT_FOUND) => Ok(None),
            Err(source) => Err(AdminError::ReadProperties {
                namespace: namespace.to_owned(),
                source,
            }),
        }
    }

    /// Writes down something about a namespace; what is not mentioned stays.
    pub async fn set_properties(
        &self,
        namespace: &str,
        properties: &BTreeMap<String, String>,
    ) -> Result<(), AdminError> {
        self.send(
            Method::PUT,
            &format!("namespaces/{namespace}/properties"),
            Some(properties),
        )
        .await
        .map(drop)
        .map_err(|source| AdminError::WriteProperties {
            namespace: namespace.to_owned(),
            source,
        })
    }

    /// What each role may do in a namespace.
    pub async fn permissions(&self, namespace: &str) -> Result<Permissions, AdminError> {
        self.read_permissions(&format!("namespaces/{namespace}/permissions"), namespace)
            .await
    }

    /// What each role may do with a topic, its namespace's permissions included.
    pub async fn topic_permissions(&self, topic: &TopicName) -> Result<Permissions, AdminError> {
        let path = format!("{}/permissions", topic.path());
        self.read_permissions(&path, &topic.to_string()).await
    }

    async fn read_permissions(&self, path: &str, of: &str) -> Result<Permissions, AdminError> {
        let permissions: BTreeMap<String, Vec<String>> =
            self.get(path)
                .await
                .map_err(|source| AdminError::ReadPermissions {
                    of: of.to_owned(),
                    source,
                })?;
        let known = |action: String| match &*action {
            "produce" => Some(Action::Produce),
            "consume" => Some(Action::Consume),
            _ => None,
        };
        Ok(permissions
            .into_iter()
            .map(|(role, actions)| (role, actions.into_iter().filter_map(known).collect()))
            .collect())
    }

    /// Lets a role do `actions` in a whole namespace, and nothing else.
    pub async fn grant(
        &self,
        namespace: &str,
        role: &str,
        actions: &[Action],
    ) -> Result<(), AdminError> {
        let path = format!("namespaces/{namespace}/permissions/{role}");
        self.write_grant(&path, namespace, role, actions).await
    }

    /// Lets a role do `actions` with one topic.
    pub async fn grant_topic(
        &self,
        topic: &TopicName,
        role: &str,
        actions: &[Action],
    ) -> Result<(), AdminError> {
        let path = format!("{}/permissions/{role}", topic.path());
        self.write_grant(&path, &topic.to_string(), role, actions)
            .await
    }

    /// Lets a role do `actions` with each of some topics, which exist and are of one namespace: one change of what is
    /// written down about the namespace, where one by one would be one each.
    ///
    /// All topics of the namespace that a broker serves hear of each such change, so that what many are let in one by one
    /// costs with the square of their number. A Pulsar before 4.0 is asked one by one nevertheless.
    pub async fn grant_topics(
        &self,
        role: &str,
        topics: &[(TopicName, Vec<Action>)],
    ) -> Result<(), AdminError> {
        let Some((first, _)) = topics.first() else {
            return Ok(());
        };
        let grants = topics.iter().map(|(topic, actions)| {
            serde_json::json!({"topic": topic.to_string(), "role": role, "actions": actions})
        });
        let grants: Vec<_> = grants.collect();
        let path = "namespaces/grantPermissionsOnTopics";
        match self.send(Method::POST, path, Some(&grants)).await {
            Err(error) if error.is(StatusCode::METHOD_NOT_ALLOWED) => {
                for (topic, actions) in topics {
                    self.grant_topic(topic, role, actions).await?;
                }
                Ok(())
            }
            outcome => outcome.map(drop).map_err(|source| AdminError::Grant {
                role: role.to_owned(),
                on: format!("topics of {}", first.namespace()),
                source,
            }),
        }
    }

    async fn write_grant(
        &self,
        path: &str,
        on: &str,
        role: &str,
        actions: &[Action],
    ) -> Result<(), AdminError> {
        self.send(Method::POST, path, Some(actions))
            .await
            .map(drop)
            .map_err(|source| AdminError::Grant {
                role: role.to_owned(),
                on: on.to_owned(),
                source,
            })
    }

    /// Takes a role's permissions in a namespace away; none is fine.
    pub async fn revoke(&self, namespace: &str, role: &str) -> Result<(), AdminError> {
        let path = format!("namespaces/{namespace}/permissions/{role}");
        self.write_revocation(&path, namespace, role).await
    }

    /// Takes a role's permissions on one topic away; none is fine.
    pub async fn revoke_topic(&self, topic: &TopicName, role: &str) -> Result<(), AdminError> {
        let path = format!("{}/permissions/{role}", topic.path());
        self.write_revocation(&path, &topic.to_string(), role).await
    }

    async fn write_revocation(&self, path: &str, on: &str, role: &str) -> Result<(), AdminError> {
        let outcome = self.send(Method::DELETE, path, None::<&()>).await;
        match outcome {
            // 412: there was no such permission on the topic.
            Err(error) if error.is(StatusCode::PRECONDITION_FAILED) => Ok(()),
            outcome => gone(outcome),
        }
        .map_err(|source| AdminError::Revoke {
            role: role.to_owned(),
            on: on.to_owned(),
            source,
        })
    }
}

/// What exists already is done.
pub(super) fn made(outcome: Result<Vec<u8>, RequestError>) -> Result<Made, RequestError> {
    match outcome {
        Ok(_) => Ok(Made::New),
        Err(error) if error.is(StatusCode::CONFLICT) => Ok(Made::Existed),
        Err(error) => Err(error),
    }
}

/// What is not there is gone.
pub(super) fn gone(outcome: Result<Vec<u8>, RequestError>) -> Result<(), RequestError> {
    match outcome {
        Ok(_) => Ok(()),
        Err(error) if error.is(StatusCode::NOT_FOUND) => Ok(()),
        Err(error) => Err(error),
    }
}
