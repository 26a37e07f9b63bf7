//! A Channel's pods: nothing but what they need, and nothing that they could do harm with.

use std::collections::{BTreeMap, BTreeSet};

use herald_crds::channel::Pod;
use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, ConfigMapProjection, ConfigMapVolumeSource, Container, ContainerPort,
    EmptyDirVolumeSource, EnvVar, EnvVarSource, HTTPGetAction, KeyToPath, LocalObjectReference,
    ObjectFieldSelector, PodSecurityContext, PodSpec, PodTemplateSpec, Probe,
    ProjectedVolumeSource, ResourceRequirements, SeccompProfile, SecretProjection,
    SecretVolumeSource, SecurityContext, ServiceAccountTokenProjection, TopologySpreadConstraint,
    Volume, VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::super::validate::Valid;
use crate::settings::{PodAuth, PodSettings};
use herald_crds::names;

/// The Channel, in the configuration.
pub const CHANNEL: &str = "channel.json";
/// The settings, in the configuration.
pub const SETTINGS: &str = "settings.json";
/// The certificates of Pulsar's authority, in the configuration.
pub const AUTHORITY: &str = "pulsar-ca.crt";
/// Where credentials are mounted: a folder for each Secret.
pub const CREDENTIALS: &str = "/etc/herald/credentials";
/// Where the configuration is mounted.
const CONFIG: &str = "/etc/herald/config";
/// Where the token for Pulsar is mounted.
const PULSAR: &str = "/etc/herald/pulsar";
/// What may be written to, and where the process is at home.
const SCRATCH: &str = "/tmp";
/// Where health and metrics are served.
pub const PROBES_PORT: i32 = 9090;
/// For whom the token for Pulsar is.
const AUDIENCE: &str = "pulsar";
/// A token is replaced long before.
const TOKEN_SECONDS: i64 = 3600;
/// What the container is called.
const CONTAINER: &str = "deliver";

/// A file of the configuration.
pub fn folder(file: &str) -> String {
    format!("{CONFIG}/{file}")
}

/// Where pods find their token for Pulsar; `None`: they have none.
pub fn pulsar_token(pods: &PodSettings) -> Option<String> {
    (pods.auth != PodAuth::None).then(|| format!("{PULSAR}/token"))
}

/// The template of a Channel's pods, configured by the `ConfigMap` of this name.
pub fn template(valid: &Valid<'_>, pods: &PodSettings, config: &str) -> PodTemplateSpec {
    let given = valid.channel.spec.pod.clone().unwrap_or_default();
    let Pod {
        resources,
        node_selector,
        affinity,
        tolerations,
        labels,
        annotations,
        priority_class_name,
        image_pull_secrets,
        service_account_annotations: _,
        env,
    } = given;
    let mut all_labels = labels;
    all_labels.extend(super::labels(valid));
    let (volumes, mounts) = volumes(valid, pods, config);
    let container = Container {
        name: CONTAINER.to_owned(),
        image: Some(pods.image.clone()),
        image_pull_policy: Some(pods.image_pull_policy.clone()),
        command: Some(vec!["herald-dispatcher".to_owned()]),
        args: Some(vec![
            "deliver".to_owned(),
            "--config".to_owned(),
            folder(SETTINGS),
        ]),
        working_dir: Some(SCRATCH.to_owned()),
        env: Some(environment(pods, env)),
        ports: Some(vec![ContainerPort {
            name: Some("probes".to_owned()),
            container_port: PROBES_PORT,
            protocol: Some("TCP".to_owned()),
            ..ContainerPort::default()
        }]),
        resources: Some(resources.unwrap_or_else(usual_resources)),
        liveness_probe: Some(probe("/livez", 10, 3)),
        // How broker and provider are is no part of it: a pod that cannot send now is still the one that will.
        readiness_probe: Some(probe("/readyz", 5, 2)),
        security_context: Some(locked_down()),
        volume_mounts: Some(mounts),
        ..Container::default()
    };
    let spread = affinity.is_none();
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(all_labels),
            annotations: some(annotations),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            service_account_name: Some(names::child(&valid.name)),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            termination_grace_period_seconds: Some(i64::from(pods.drain_seconds) + 10),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                seccomp_profile: Some(usual_seccomp()),
                ..PodSecurityContext::default()
            }),
            containers: vec![container],
            volumes: Some(volumes),
            node_selector: some(node_selector),
            affinity: affinity.filter(|affinity| *affinity != Affinity::default()),
            tolerations: Some(tolerations).filter(|all| !all.is_empty()),
            topology_spread_constraints: spread.then(|| spread_out(valid)),
            priority_class_name,
            image_pull_secrets: Some(
                image_pull_secrets
                    .into_iter()
                    .map(|secret| LocalObjectReference { name: secret.name })
                    .collect::<Vec<_>>(),
            )
            .filter(|all| !all.is_empty()),
            ..PodSpec::default()
        }),
    }
}

fn some(map: BTreeMap<String, String>) -> Option<BTreeMap<String, String>> {
    Some(map).filter(|map| !map.is_empty())
}

fn environment(pods: &PodSettings, given: Vec<herald_crds::channel::EnvVar>) -> Vec<EnvVar> {
    let name = EnvVar {
        name: "HERALD_POD".to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: Some("v1".to_owned()),
                field_path: "metadata.name".to_owned(),
            }),
            ..EnvVarSource::default()
        }),
    };
    let plain = |name: &str, value: String| EnvVar {
        name: name.to_owned(),
        value: Some(value),
        value_from: None,
    };
    let log = pods.log.clone().map(|log| plain("HERALD_LOG", log));
    let given = given
        .into_iter()
        .map(|variable| plain(&variable.name, variable.value));
    std::iter::once(name).chain(log).chain(given).collect()
}

fn usual_resources() -> ResourceRequirements {
    let amounts = |all: &[(&str, &str)]| {
        let all = all.iter();
        Some(
            all.map(|(name, amount)| ((*name).to_owned(), Quantity((*amount).to_owned())))
                .collect(),
        )
    };
    ResourceRequirements {
        requests: amounts(&[("cpu", "50m"), ("memory", "64Mi")]),
        limits: amounts(&[("memory", "256Mi")]),
        ..ResourceRequirements::default()
    }
}

fn probe(path: &str, period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("probes".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        failure_threshold: Some(failures),
        timeout_seconds: Some(3),
        ..Probe::default()
    }
}

fn usual_seccomp() -> SeccompProfile {
    SeccompProfile {
        type_: "RuntimeDefault".to_owned(),
        localhost_profile: None,
    }
}

/// As the restricted Pod Security Standard wants it, and a root that cannot be written to.
fn locked_down() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        capabilities: Some(Capabilities {
            drop: Some(vec!["ALL".to_owned()]),
            add: None,
        }),
        seccomp_profile: Some(usual_seccomp()),
        ..SecurityContext::default()
    }
}

/// Over nodes and zones, as far as possible.
fn spread_out(valid: &Valid<'_>) -> Vec<TopologySpreadConstraint> {
    ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
        .into_iter()
        .map(|key| TopologySpreadConstraint {
            max_skew: 1,
            topology_key: key.to_owned(),
            when_unsatisfiable: "ScheduleAnyway".to_owned(),
            label_selector: Some(super::selector(valid)),
            match_label_keys: Some(vec!["pod-template-hash".to_owned()]),
            ..TopologySpreadConstraint::default()
        })
        .collect()
}

fn volumes(valid: &Valid<'_>, pods: &PodSettings, config: &str) -> (Vec<Volume>, Vec<VolumeMount>) {
    let mut volumes = vec![
        Volume {
            name: "config".to_owned(),
            config_map: Some(ConfigMapVolumeSource {
                name: config.to_owned(),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        },
        Volume {
            name: "scratch".to_owned(),
            empty_dir: Some(EmptyDirVolumeSource {
                medium: None,
                size_limit: Some(Quantity("64Mi".to_owned())),
            }),
            ..Volume::default()
        },
    ];
    let mut mounts = vec![
        mount("config", CONFIG, true),
        mount("scratch", SCRATCH, false),
    ];
    if let Some(volume) = pulsar_volume(pods) {
        volumes.push(volume);
        mounts.push(mount("pulsar", PULSAR, true));
    }
    let named: BTreeSet<&String> = valid.secrets.union(&valid.authorities).collect();
    for (index, name) in named.into_iter().enumerate() {
        let volume = format!("credentials-{index}");
        mounts.push(mount(&volume, &format!("{CREDENTIALS}/{name}"), true));
        volumes.push(credentials(valid, name, volume));
    }
    (volumes, mounts)
}

fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

/// A Secret, or a `ConfigMap` with certificates, or both where they have the same name: one folder, which changes when
/// they do.
fn credentials(valid: &Valid<'_>, name: &str, volume: String) -> Volume {
    let secret = valid.secrets.contains(name).then(|| VolumeProjection {
        secret: Some(SecretProjection {
            name: name.to_owned(),
            ..SecretProjection::default()
        }),
        ..VolumeProjection::default()
    });
    let authority = valid.authorities.contains(name).then(|| VolumeProjection {
        config_map: Some(ConfigMapProjection {
            name: name.to_owned(),
            ..ConfigMapProjection::default()
        }),
        ..VolumeProjection::default()
    });
    Volume {
        name: volume,
        projected: Some(ProjectedVolumeSource {
            sources: Some(secret.into_iter().chain(authority).collect()),
            default_mode: None,
        }),
        ..Volume::default()
    }
}

/// The token for Pulsar.
fn pulsar_volume(pods: &PodSettings) -> Option<Volume> {
    let name = "pulsar".to_owned();
    match pods.auth {
        PodAuth::None => None,
        PodAuth::Secret => Some(Volume {
            name,
            secret: Some(SecretVolumeSource {
                secret_name: Some(pods.secret.clone()),
                items: Some(vec![KeyToPath {
                    key: "token".to_owned(),
                    path: "token".to_owned(),
                    mode: None,
                }]),
                ..SecretVolumeSource::default()
            }),
            ..Volume::default()
        }),
        PodAuth::ServiceAccount => Some(Volume {
            name,
            projected: Some(ProjectedVolumeSource {
                sources: Some(vec![VolumeProjection {
                    service_account_token: Some(ServiceAccountTokenProjection {
                        audience: Some(AUDIENCE.to_owned()),
                        expiration_seconds: Some(TOKEN_SECONDS),
                        path: "token".to_owned(),
                    }),
                    ..VolumeProjection::default()
                }]),
                default_mode: None,
            }),
            ..Volume::default()
        }),
    }
}
