//! What a Channel's pods look like.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, ResourceRequirements, Toleration};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pattern;
use crate::shared::{self, NameRef};

/// What a Channel's pods look like, as far as it is not the operator's to say.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pod {
    /// As in a container: requests and limits. Default: the operator's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "shared::free_object")]
    pub resources: Option<ResourceRequirements>,
    /// As in a pod.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "shared::short_strings")]
    pub node_selector: BTreeMap<String, String>,
    /// As in a pod. Default: spread over nodes and zones as far as possible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "shared::free_object")]
    pub affinity: Option<Affinity>,
    /// As in a pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "shared::free_objects", length(max = 16))]
    pub tolerations: Vec<Toleration>,
    /// Further labels; herald.dev/ and app.kubernetes.io/ are taken.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "shared::short_strings")]
    pub labels: BTreeMap<String, String>,
    /// Further annotations; herald.dev/ is taken.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "shared::short_strings")]
    pub annotations: BTreeMap<String, String>,
    /// As in a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = pattern::DNS_SUBDOMAIN))]
    pub priority_class_name: Option<String>,
    /// As in a pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub image_pull_secrets: Vec<NameRef>,
    /// Annotations of the service account, for workload identity.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "shared::short_strings")]
    pub service_account_annotations: BTreeMap<String, String>,
    /// Further environment variables, for proxies; HERALD_ is taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub env: Vec<EnvVar>,
}

/// An environment variable.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnvVar {
    /// Its name, such as HTTPS_PROXY.
    #[schemars(length(min = 1, max = 128), regex(pattern = pattern::ENV_NAME))]
    pub name: String,
    /// Its value. Not for secrets.
    #[schemars(length(max = 4096))]
    pub value: String,
}
