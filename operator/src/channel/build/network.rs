//! Whom a Channel's pods may speak to: DNS, Pulsar, their providers. Nobody speaks to them but who asks how they are.
//!
//! A policy judges the pod that answers and its port, not the Service that was asked and the Service's: what the one has to
//! do with the other is not known here. Where a name says of which namespace a Service is, all ports of its pods are let out to.

use std::collections::BTreeSet;
use std::net::IpAddr;

use herald_crds::ProviderSpec;
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
    NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::super::validate::Valid;
use super::pod::PROBES_PORT;
use crate::settings::PodSettings;

/// Addresses that are private, of one machine, or of one link (RFC 1918, 6598, 3927, 1122); Herald sends to none of them
/// unless it is allowed to.
const PRIVATE_V4: [&str; 6] = [
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
];

/// The same (RFC 4193, 4291).
const PRIVATE_V6: [&str; 2] = ["fc00::/7", "fe80::/10"];

/// Where DNS servers listen in their pods, if not on port 53, as on `OpenShift`.
const DNS_IN_PODS: u16 = 5353;

/// The label with the name of a namespace, which every one has.
const NAMESPACE_LABEL: &str = "kubernetes.io/metadata.name";

/// Where one provider is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// `None`: on any port.
    port: Option<u16>,
    /// `None`: at a name, which may be any address.
    address: Option<IpAddr>,
    private: bool,
}

/// The network policy of a Channel's pods.
pub fn policy(valid: &Valid<'_>, pods: &PodSettings) -> NetworkPolicy {
    let both = |at| Some(vec![port("UDP", Some(at)), port("TCP", Some(at))]);
    let mut egress = vec![
        NetworkPolicyEgressRule {
            ports: both(53),
            to: None,
        },
        NetworkPolicyEgressRule {
            ports: both(DNS_IN_PODS),
            to: Some(vec![of_namespaces(LabelSelector::default())]),
        },
        NetworkPolicyEgressRule {
            ports: Some(vec![port("TCP", Some(pods.pulsar_port))]),
            to: None,
        },
    ];
    let (places, services) = places(valid, pods);
    egress.extend(places.iter().map(rule));
    egress.extend(services.into_iter().map(pods_of));
    NetworkPolicy {
        metadata: super::child_metadata(valid),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(super::selector(valid)),
            policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            ingress: Some(vec![NetworkPolicyIngressRule {
                ports: Some(vec![port("TCP", u16::try_from(PROBES_PORT).ok())]),
                from: None,
            }]),
            egress: Some(egress),
        }),
    }
}

/// Where providers and proxies are, and the namespaces of what may be Services among them and Pulsar.
fn places(valid: &Valid<'_>, pods: &PodSettings) -> (BTreeSet<Place>, BTreeSet<String>) {
    let spec = &valid.channel.spec;
    let allowed = |by_channel: bool| by_channel && pods.allow_private_addresses;
    let service = |host: &str| service_of(host, &valid.namespace);
    let mut places = BTreeSet::new();
    let mut services: BTreeSet<_> = brokers(&pods.pulsar_url).filter_map(service).collect();
    let mut add = |host: &str, port, private| {
        places.insert(Place {
            port,
            address: host.parse().ok(),
            private,
        });
        if private {
            services.extend(service(host));
        }
    };
    for provider in &spec.providers {
        match provider.spec() {
            Some(ProviderSpec::Smtp(smtp)) => {
                let private = allowed(smtp.allow_private_addresses);
                add(&smtp.host, Some(smtp.port()), private);
            }
            Some(ProviderSpec::Webhook(webhook)) => {
                let (host, port) = webhook.url.as_deref().map(place_of).unwrap_or_default();
                add(&host, port, allowed(webhook.allow_private_addresses));
            }
            Some(ProviderSpec::Log(_)) | None => {}
        }
    }
    // Proxies are inside, as a rule.
    let variables = spec.pod.iter().flat_map(|pod| &pod.env);
    for variable in variables {
        let name = variable.name.to_ascii_uppercase();
        if name.ends_with("_PROXY") && name != "NO_PROXY" {
            let (host, port) = place_of(&variable.value);
            add(&host, port, true);
        }
    }
    (places, services)
}

/// The host and the port of a URL, as far as it says them.
fn place_of(url: &str) -> (String, Option<u16>) {
    let Ok(url) = reqwest::Url::parse(url) else {
        return (String::new(), None);
    };
    let host = url.host_str().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (host.to_owned(), url.port_or_known_default())
}

/// The brokers' hosts: `pulsar://one:6650,two:6650`.
fn brokers(url: &str) -> impl Iterator<Item = &str> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let hosts = rest.split('/').next().unwrap_or_default().split(',');
    hosts.map(|host| host.rsplit_once(':').map_or(host, |(host, _)| host))
}

/// The namespace of the Service that pods of `namespace` may find by this name: `mail`, `mail.shop`, `mail.shop.svc` and
/// what may come after that; `None`: it is none.
fn service_of(host: &str, namespace: &str) -> Option<String> {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let labels: Vec<&str> = host.split('.').collect();
    let is_label = |label: &&str| {
        let is_end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = label.as_bytes();
        bytes.len() <= 63
            && is_end(bytes.first())
            && is_end(bytes.last())
            && bytes
                .iter()
                .all(|byte| *byte == b'-' || byte.is_ascii_alphanumeric())
    };
    if !labels.iter().all(is_label) || host.parse::<IpAddr>().is_ok() {
        return None;
    }
    match labels[..] {
        [_] => Some(namespace.to_owned()),
        [_, of] => Some(of.to_owned()),
        // `pod.mail.shop.svc`, too.
        _ => {
            let mut pairs = labels[1..].windows(2);
            let of = pairs.find(|pair| pair[1] == "svc")?;
            Some(of[0].to_owned())
        }
    }
}

/// All TCP ports of a namespace's pods.
fn pods_of(namespace: String) -> NetworkPolicyEgressRule {
    let labels = [(NAMESPACE_LABEL.to_owned(), namespace)].into();
    NetworkPolicyEgressRule {
        ports: Some(vec![port("TCP", None)]),
        to: Some(vec![of_namespaces(LabelSelector {
            match_labels: Some(labels),
            match_expressions: None,
        })]),
    }
}

fn of_namespaces(selector: LabelSelector) -> NetworkPolicyPeer {
    NetworkPolicyPeer {
        namespace_selector: Some(selector),
        ..NetworkPolicyPeer::default()
    }
}

fn rule(place: &Place) -> NetworkPolicyEgressRule {
    let Place {
        port: at,
        address,
        private,
    } = place;
    let block = |cidr: String, except: &[&str]| NetworkPolicyPeer {
        ip_block: Some(IPBlock {
            cidr,
            except: Some(
                except
                    .iter()
                    .map(|&cidr| cidr.to_owned())
                    .collect::<Vec<_>>(),
            )
            .filter(|except| !except.is_empty()),
        }),
        ..NetworkPolicyPeer::default()
    };
    let to = match (address, private) {
        (Some(IpAddr::V4(address)), _) => Some(vec![block(format!("{address}/32"), &[])]),
        (Some(IpAddr::V6(address)), _) => Some(vec![block(format!("{address}/128"), &[])]),
        // Also pods of the cluster, which no block of addresses stands for.
        (None, true) => None,
        (None, false) => Some(vec![
            block("0.0.0.0/0".to_owned(), &PRIVATE_V4),
            block("::/0".to_owned(), &PRIVATE_V6),
        ]),
    };
    NetworkPolicyEgressRule {
        ports: Some(vec![port("TCP", *at)]),
        to,
    }
}

fn port(protocol: &str, port: Option<u16>) -> NetworkPolicyPort {
    NetworkPolicyPort {
        protocol: Some(protocol.to_owned()),
        port: port.map(|port| IntOrString::Int(i32::from(port))),
        end_port: None,
    }
}
