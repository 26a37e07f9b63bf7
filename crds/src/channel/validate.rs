//! What is wrong with a Channel.

use std::collections::HashSet;

use super::{
    Channel, ChannelSpec, From, Pod, Provider, ProviderSpec, SmtpSpec, SmtpTls, WebhookSpec,
};
use crate::address::{check_mailbox, check_url};
use crate::validate::{Problem, Problems, Validate, validate};
use crate::{Kind, Priority};

/// At most this many bytes of JSON for what a pod takes over from Kubernetes unchanged.
const POD_OBJECT_BYTES: usize = 16 * 1024;

/// Header fields of a webhook request that Herald sets.
const TAKEN_HEADERS: [&str; 9] = [
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
    "content-type",
    "content-length",
    "transfer-encoding",
    "connection",
    "host",
    "traceparent",
];

impl Validate for Channel {
    fn validate(&self) -> Vec<Problem> {
        validate(Kind::Channel, &self.metadata, &self.spec, |problems| {
            check_providers(&self.spec, problems);
            check_shares(&self.spec, problems);
            if let Some(allowed) = &self.spec.allowed_namespaces {
                let at = "/spec/allowedNamespaces";
                if allowed.selector.is_some() != (allowed.from == From::Selector) {
                    problems.add(at, "selector goes with from: Selector, and only with it");
                }
                if let Some(selector) = &allowed.selector {
                    let at = format!("{at}/selector/matchLabels");
                    problems.labels(&at, &selector.match_labels, true, &[]);
                }
            }
            if let Some(scaling) = &self.spec.autoscaling
                && scaling.min_replicas.unwrap_or(1) > scaling.max_replicas
            {
                let message = "minReplicas must not be more than maxReplicas";
                problems.add("/spec/autoscaling", message);
            }
            if let Some(pod) = &self.spec.pod {
                check_pod(pod, problems);
            }
        })
    }

    fn validate_change(&self, old: &Self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let (new, old) = (&self.spec, &old.spec);
        if new.medium != old.medium {
            let message = "medium cannot be changed: make another Channel";
            problems.push(Problem::new("/spec/medium", message));
        }
        if new.partitions() < old.partitions() {
            let message = "can only grow: a smaller number would lose what waits in the others";
            problems.push(Problem::new("/spec/topics/partitions", message));
        }
        if new.autoscaling.is_some() && old.autoscaling.is_some() && new.replicas != old.replicas {
            let message = "the operator decides the number of replicas while autoscaling is present: change autoscaling, or remove it first";
            problems.push(Problem::new("/spec/replicas", message));
        }
        problems
    }
}

fn check_providers(channel: &ChannelSpec, problems: &mut Problems) {
    for (index, provider) in channel.providers.iter().enumerate() {
        let at = format!("/spec/providers/{index}");
        check_provider(channel, provider, &at, problems);
    }
    let fixed = |provider: &Provider| provider.webhook.as_ref().map(|w| w.url.is_some());
    let kinds: HashSet<bool> = channel.providers.iter().filter_map(fixed).collect();
    if kinds.len() > 1 {
        let message = "either every webhook provider has a url or none: else a failover would reach somebody else";
        problems.add("/spec/providers", message);
    }
}

fn check_provider(channel: &ChannelSpec, provider: &Provider, at: &str, problems: &mut Problems) {
    let Some(spec) = provider.spec() else {
        problems.add(at, "give exactly one of smtp, webhook and log");
        return;
    };
    let name = spec.as_str();
    let at = format!("{at}/{name}");
    if let Some(medium) = spec.medium().filter(|medium| *medium != channel.medium) {
        let message = format!(
            "{name} is for medium {medium}; this Channel's is {}",
            channel.medium
        );
        problems.add(&at, message);
    }
    match spec {
        ProviderSpec::Smtp(smtp) => check_smtp(smtp, &at, problems),
        ProviderSpec::Webhook(webhook) => check_webhook(webhook, &at, problems),
        ProviderSpec::Log(log) => {
            let mut seen = HashSet::new();
            for (index, rule) in log.rules.iter().enumerate() {
                if !seen.insert(&rule.recipient) {
                    let message = "an earlier rule has the same recipient: this one never counts";
                    problems.add(format!("{at}/rules/{index}/recipient"), message);
                }
            }
        }
    }
}

fn check_smtp(smtp: &SmtpSpec, at: &str, problems: &mut Problems) {
    let must_be = |words| format!("must be {words}");
    problems.check(
        format!("{at}/from"),
        check_mailbox(&smtp.from).map_err(must_be),
    );
    let plain = smtp.tls() == SmtpTls::None;
    if plain && smtp.credentials_ref.is_some() && !smtp.allow_private_addresses {
        let message = "credentials would cross the network in the clear: use tls StartTls or Tls";
        problems.add(format!("{at}/tls"), message);
    }
    if plain && smtp.ca_ref.is_some() {
        problems.add(
            format!("{at}/caRef"),
            "has no use with tls None: remove one of them",
        );
    }
}

fn check_webhook(webhook: &WebhookSpec, at: &str, problems: &mut Problems) {
    if let Some(url) = &webhook.url {
        let must_be = |words| format!("must be {words}");
        problems.check(format!("{at}/url"), check_url(url).map_err(must_be));
    }
    problems.headers(&format!("{at}/headers"), &webhook.headers, &TAKEN_HEADERS);
}

fn check_shares(channel: &ChannelSpec, problems: &mut Problems) {
    let shares = Priority::ALL
        .into_iter()
        .filter_map(|class| channel.class_share(class));
    let percent: f64 = shares.map(|share| share.share * 100.0).sum();
    if percent.round() > 50.0 {
        let message = format!(
            "the shares of high, normal and low sum to {percent:.0} percent: at most 50, so that critical keeps half"
        );
        problems.add("/spec/priority", message);
    }
}

fn check_pod(pod: &Pod, problems: &mut Problems) {
    let at = |field: &str| format!("/spec/pod/{field}");
    let taken = ["herald.dev/", "app.kubernetes.io/"];
    problems.labels(&at("labels"), &pod.labels, true, &taken);
    problems.labels(&at("nodeSelector"), &pod.node_selector, true, &[]);
    problems.labels(&at("annotations"), &pod.annotations, false, &taken[..1]);
    let annotations = &pod.service_account_annotations;
    problems.labels(
        &at("serviceAccountAnnotations"),
        annotations,
        false,
        &taken[..1],
    );
    problems.size(at("resources"), &pod.resources, POD_OBJECT_BYTES);
    problems.size(at("affinity"), &pod.affinity, POD_OBJECT_BYTES);
    problems.size(at("tolerations"), &pod.tolerations, POD_OBJECT_BYTES);
    let mut seen = HashSet::new();
    for (index, variable) in pod.env.iter().enumerate() {
        let at = format!("/spec/pod/env/{index}/name");
        if variable.name.starts_with("HERALD_") {
            problems.add(at, "HERALD_ is the operator's: choose another name");
        } else if !seen.insert(&variable.name) {
            problems.add(at, "another variable has the same name");
        }
    }
}
