//! Whether a request is right: every problem at once, with its place.

use std::sync::Arc;
use std::time::Duration;

use herald_crds::names::Path;
use herald_crds::{Channel, Kind, Problem, RecipientRef, Strategy, Who};
use jiff::Timestamp;
use serde_json::Value;
use serde_json::value::RawValue;

use super::groups::{Groups, NoDefinition, Packed};
use super::refusal::suggest;
use super::{ChannelLoad, Refusal, SendRequest};
use crate::access::Sender;
use crate::catalog::{Snapshot, TemplateInForce};
use crate::id::{FullName, NotificationId};
use crate::message::{Request, To};

/// Most inline recipients.
pub const MOST_RECIPIENTS: usize = 10_000;

/// Most channels that a request may name.
pub(super) const MOST_CHANNELS: usize = 8;

/// Most metadata, and the longest name or value.
const MOST_METADATA: usize = 32;
const LONGEST_METADATA: usize = 256;

/// Longest spread.
const LONGEST_SPREAD: u32 = 86_400;

/// Clocks differ: a `sendAt` that is over by no more than this means now.
const SKEW: Duration = Duration::from_mins(1);

/// How far ahead a `sendAt` may be.
const FARTHEST: Duration = Duration::from_hours(8784);

/// Most recipients of a notification that goes straight on.
const MOST_DIRECT: usize = 10;

/// Of what is wrong with a template that never was in force, so many things are told.
const TOLD: usize = 4;

/// Work that may be ahead of a notification that goes straight on, in seconds.
const DIRECT_AHEAD: f64 = 10.0;

/// A request that is right, as it will travel.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The request.
    pub request: Request,
    /// The definitions that it needs, by hash: base64 of zstd of canonical JSON.
    pub definitions: Vec<Packed>,
    /// The way it takes.
    pub path: Path,
}

/// What a request is checked against.
pub(super) struct Against<'a> {
    pub(super) snapshot: &'a Arc<Snapshot>,
    pub(super) groups: &'a Groups,
    pub(super) load: &'a dyn ChannelLoad,
    pub(super) sender: &'a Sender,
    pub(super) namespace: &'a str,
    pub(super) now: Timestamp,
}

/// A channel that a notification goes over.
struct Routed {
    name: FullName,
    channel: Arc<Channel>,
}

impl Against<'_> {
    /// Checks a request, and makes of it what travels.
    pub(super) fn prepare(
        &self,
        id: NotificationId,
        body: Arc<str>,
        traceparent: Option<Arc<str>>,
        asked: SendRequest,
    ) -> Result<Prepared, Refusal> {
        let mut problems = Vec::new();
        let template_name: FullName = format!("{}/{}", self.namespace, asked.template).into();
        let template = self.snapshot.templates.get(&template_name);
        if let Some(namespace) = self.unread(template.map(|template| &**template), &asked) {
            let namespace = namespace.to_owned();
            return Err(Refusal::Read { namespace });
        }
        let (send_at, expires_at) = self.times(&asked, &mut problems);
        metadata(&asked, &mut problems);
        let routed = template.map_or_else(Vec::new, |template| {
            self.route(template, &asked, &mut problems)
        });
        let groups = self.recipients(&asked.recipients, &routed, &mut problems);
        let Some(template) = template else {
            return Err(self.unknown_template(asked.template, problems));
        };
        let spec = &template.resource.spec;
        let priority = asked.priority.unwrap_or_else(|| spec.priority());

        let parameters = Value::Object(asked.parameters);
        if let Err(wrong) = template.compiled.check_parameters(&parameters) {
            problems.extend(
                wrong
                    .into_iter()
                    .map(|p| Problem::new(format!("/parameters{}", p.path), p.message)),
            );
        }
        let raw = serde_json::value::to_raw_value(&parameters);
        let parameters: Box<RawValue> = match raw {
            Ok(raw) if problems.is_empty() => raw,
            _ => {
                problems.sort_unstable();
                return Err(Refusal::Check { problems });
            }
        };

        let spread = asked.spread_over_seconds.unwrap_or(0);
        let expires_at = expires_at.or_else(|| {
            let lifetime = spec.expires_after() + Duration::from_secs(u64::from(spread));
            send_at.unwrap_or(self.now).checked_add(lifetime).ok()
        });
        let path = self.path(template, &asked.recipients, &routed, send_at, spread);
        let system = match routed.first() {
            Some(first) => self.load.system_state(&first.name, priority),
            None => self.load.system_state("", priority),
        };
        let channels = if asked.channels.is_empty() {
            Vec::new()
        } else {
            routed.into_iter().map(|routed| routed.name).collect()
        };
        let mut definitions = vec![(Arc::clone(&template.hash), Arc::clone(&template.packed))];
        let groups_hash = groups.as_ref().map(|(hash, _)| Arc::clone(hash));
        definitions.extend(groups);
        Ok(Prepared {
            request: Request {
                id,
                namespace: self.namespace.into(),
                sender: Arc::clone(&self.sender.name),
                body,
                template: asked.template.into(),
                definition: Arc::clone(&template.hash),
                groups: groups_hash,
                priority,
                recipients: asked
                    .recipients
                    .into_iter()
                    .filter_map(|reference| self.to(reference))
                    .collect(),
                parameters,
                sensitive: template.compiled.definition().has_sensitive_parameters(),
                channels,
                accepted_at: self.now,
                send_at,
                expires_at,
                spread_over_seconds: spread,
                confirm_recipients: asked.confirm_recipients,
                metadata: asked.metadata,
                traceparent,
                system,
            },
            definitions,
            path,
        })
    }

    /// The first namespace of which something is needed, and cannot be read at the moment.
    fn unread<'n>(
        &'n self,
        template: Option<&'n TemplateInForce>,
        asked: &'n SendRequest,
    ) -> Option<&'n str> {
        if self.snapshot.untold.unread.is_empty() {
            return None;
        }
        let is_unread = |kind, namespace| self.snapshot.is_unread(kind, namespace);
        if Kind::ALL
            .into_iter()
            .any(|kind| is_unread(kind, self.namespace))
        {
            return Some(self.namespace);
        }
        let named = asked
            .channels
            .iter()
            .filter_map(|name| name.split_once('/'));
        let routes = template.into_iter().flat_map(|template| {
            let routes = template.resource.spec.routing.channels.iter();
            routes.filter_map(|route| route.namespace.as_deref())
        });
        let mut namespaces = named.map(|(namespace, _)| namespace).chain(routes);
        namespaces.find(|namespace| is_unread(Kind::Channel, namespace))
    }

    fn unknown_template(&self, template: String, problems: Vec<Problem>) -> Refusal {
        let declared = format!(
            "{} {}/{template}",
            Kind::NotificationTemplate,
            self.namespace
        );
        let wrong = self.snapshot.problems.iter();
        let wrong = wrong.filter(|problem| problem.resource == declared);
        let wrong: Vec<_> = wrong.map(|problem| &*problem.message).take(TOLD).collect();
        Refusal::FindTemplate {
            namespace: self.namespace.to_owned(),
            wrong: (!wrong.is_empty()).then(|| wrong.join("; ")),
            close: self.close(&template, self.snapshot.templates.keys()),
            template,
            problems,
        }
    }

    /// Those names of this namespace that look like `given`, the likeliest first.
    fn close<'n>(&self, given: &str, names: impl Iterator<Item = &'n FullName>) -> Vec<String> {
        let prefix = format!("{}/", self.namespace);
        let mut close: Vec<(f64, &str)> = names
            .filter_map(|name| name.strip_prefix(&prefix))
            .map(|name| (strsim::jaro_winkler(name, given), name))
            .filter(|(likeness, _)| *likeness > 0.8)
            .collect();
        close.sort_by(|a, b| b.0.total_cmp(&a.0));
        let names = close.into_iter().take(3).map(|(_, name)| name.to_owned());
        names.collect()
    }

    /// The channels that it goes over: those that the request names, else the template's.
    fn route(
        &self,
        template: &TemplateInForce,
        asked: &SendRequest,
        problems: &mut Vec<Problem>,
    ) -> Vec<Routed> {
        let spec = &template.resource.spec;
        if asked.channels.len() > MOST_CHANNELS {
            problems.push(Problem::new(
                "/channels",
                format!("at most {MOST_CHANNELS} channels may be named"),
            ));
            return Vec::new();
        }
        let mut routed: Vec<Routed> = Vec::new();
        for (at, given) in asked.channels.iter().enumerate() {
            let (namespace, name) = given
                .split_once('/')
                .unwrap_or((self.namespace, given.as_str()));
            match self.channel(template, namespace, name) {
                Ok(one) if routed.iter().any(|other| other.name == one.name) => {
                    let message = format!("channel {given:?} is named twice");
                    problems.push(Problem::new(format!("/channels/{at}"), message));
                }
                Ok(one) => routed.push(one),
                Err(message) => {
                    problems.push(Problem::new(format!("/channels/{at}"), message));
                }
            }
        }
        if !asked.channels.is_empty() {
            return routed;
        }
        let mut wrong = Vec::new();
        for route in &spec.routing.channels {
            let namespace = route.namespace.as_deref().unwrap_or(self.namespace);
            match self.channel(template, namespace, &route.name) {
                Ok(one) => routed.push(one),
                Err(message) => wrong.push(message),
            }
        }
        // With FirstAvailable one way out is enough; with All a missing one would be a message not sent.
        if routed.is_empty() || spec.routing.strategy() == Strategy::All {
            for message in wrong {
                let message = format!("template {:?} cannot be sent: {message}", asked.template);
                problems.push(Problem::new("/template", message));
            }
        }
        routed
    }

    /// A channel that templates of this namespace may route to, and for whose medium the template has something to say.
    fn channel(
        &self,
        template: &TemplateInForce,
        namespace: &str,
        name: &str,
    ) -> Result<Routed, String> {
        let full = format!("{namespace}/{name}");
        let shown = if namespace == self.namespace {
            name
        } else {
            &full
        };
        let Some((full, channel)) = self.snapshot.channels.get_key_value(full.as_str()) else {
            return Err(format!("there is no channel {shown:?}"));
        };
        if !(self.snapshot).allows(namespace, &channel.spec, self.namespace) {
            return Err(format!(
                "channel {shown:?} does not allow templates of namespace {:?} (its allowedNamespaces)",
                self.namespace
            ));
        }
        let medium = channel.spec.medium;
        if !template.resource.spec.content.has(medium) {
            return Err(format!(
                "the template says nothing for channel {shown:?}: it has no content.{medium}"
            ));
        }
        Ok(Routed {
            name: Arc::clone(full),
            channel: Arc::clone(channel),
        })
    }

    /// Checks the recipients, and closes the groups among them.
    fn recipients(
        &self,
        recipients: &[RecipientRef],
        routed: &[Routed],
        problems: &mut Vec<Problem>,
    ) -> Option<Packed> {
        if recipients.is_empty() {
            problems.push(Problem::new("/recipients", "name at least one recipient"));
            return None;
        }
        if recipients.len() > MOST_RECIPIENTS {
            let message = format!(
                "at most {MOST_RECIPIENTS} recipients may be listed (got {}): put them into a managed group and name \
                 the group",
                recipients.len()
            );
            problems.push(Problem::new("/recipients", message));
            return None;
        }
        let mut roots = Vec::new();
        for (at, reference) in recipients.iter().enumerate() {
            let pointer = format!("/recipients/{at}");
            let wrong = reference.problems(&pointer);
            if !wrong.is_empty() {
                problems.extend(wrong);
                continue;
            }
            match reference.who() {
                Some(Who::Group(group)) => {
                    let full: FullName = format!("{}/{group}", self.namespace).into();
                    if self.snapshot.groups.contains_key(&full) {
                        roots.push(full);
                    } else {
                        problems.push(Problem::new(
                            format!("{pointer}/group"),
                            format!(
                                "there is no group {group:?} in namespace {:?}{}",
                                self.namespace,
                                suggest(&self.close(group, self.snapshot.groups.keys()))
                            ),
                        ));
                    }
                }
                Some(Who::Address(address))
                    if !routed.is_empty()
                        && !routed
                            .iter()
                            .any(|r| r.channel.spec.endpoint(address).is_some()) =>
                {
                    let mediums: Vec<_> = routed
                        .iter()
                        .map(|r| r.channel.spec.medium.as_str())
                        .collect();
                    problems.push(Problem::new(
                        format!("{pointer}/address"),
                        format!(
                            "cannot be reached over any channel of this notification: it needs an address for {}",
                            mediums.join(" or ")
                        ),
                    ));
                }
                Some(Who::Address(_) | Who::Recipient(_)) | None => {}
            }
        }
        roots.sort_unstable();
        roots.dedup();
        if roots.is_empty() {
            return None;
        }
        match self.groups.definition(self.snapshot, &roots) {
            Ok(packed) => Some(packed),
            Err(NoDefinition::Missing {
                root,
                group,
                missing,
            }) => {
                let name = |full: &FullName| full.rsplit('/').next().unwrap_or(full).to_owned();
                let at = recipients
                    .iter()
                    .position(|r| r.group.as_deref() == Some(&name(&root)));
                problems.push(Problem::new(
                    format!("/recipients/{}/group", at.unwrap_or(0)),
                    format!(
                        "group {:?} contains group {:?}, which is not there",
                        name(&group),
                        name(&missing)
                    ),
                ));
                None
            }
            Err(NoDefinition::TooLarge) => {
                problems.push(Problem::new(
                    "/recipients",
                    "the groups have too many members for YAML: make them managed and add the members over HTTP",
                ));
                None
            }
        }
    }

    fn to(&self, reference: RecipientRef) -> Option<To> {
        let RecipientRef {
            recipient,
            group,
            address,
        } = reference;
        recipient
            .map(|id| To::Recipient(id.into()))
            .or_else(|| group.map(|name| To::Group(format!("{}/{name}", self.namespace).into())))
            .or_else(|| address.map(|address| To::Address(Box::new(address))))
    }

    /// `sendAt` and `expiresAt`, if they make sense.
    fn times(
        &self,
        asked: &SendRequest,
        problems: &mut Vec<Problem>,
    ) -> (Option<Timestamp>, Option<Timestamp>) {
        let mut problem = |path: &str, message: String| problems.push(Problem::new(path, message));
        let send_at = asked.send_at.filter(|at| *at > self.now);
        if let Some(at) = asked.send_at {
            if self.now.duration_since(at).unsigned_abs() > SKEW && at < self.now {
                problem("/sendAt", format!("{at} is in the past"));
            } else if at.duration_since(self.now).unsigned_abs() > FARTHEST {
                problem("/sendAt", format!("{at} is more than a year ahead"));
            }
        }
        if let Some(until) = asked.expires_at {
            let from = send_at.unwrap_or(self.now);
            if until <= from {
                let what = if send_at.is_some() { "sendAt" } else { "now" };
                problem("/expiresAt", format!("{until} is not after {what}"));
            }
        }
        if asked
            .spread_over_seconds
            .is_some_and(|s| s > LONGEST_SPREAD)
        {
            problem(
                "/spreadOverSeconds",
                format!("must be at most {LONGEST_SPREAD}, a day"),
            );
        }
        (send_at, asked.expires_at)
    }

    /// Whether it goes straight on, or through the waiting room.
    fn path(
        &self,
        template: &TemplateInForce,
        recipients: &[RecipientRef],
        routed: &[Routed],
        send_at: Option<Timestamp>,
        spread: u32,
    ) -> Path {
        let spec = &template.resource.spec;
        let direct = spec.mandatory
            && !spec.suspend
            && spec.routing.strategy() == Strategy::All
            && spec.deduplication.is_none()
            && send_at.is_none()
            && spread == 0
            && recipients.len() <= MOST_DIRECT
            && recipients.len() as u64 <= spec.max_recipients()
            && recipients.iter().all(|r| r.address.is_some())
            && routed.iter().all(|routed| {
                !routed.channel.spec.suspend
                    && self
                        .load
                        .seconds_ahead(&routed.name)
                        .is_some_and(|ahead| ahead < DIRECT_AHEAD)
            });
        if direct { Path::Direct } else { Path::Stored }
    }
}

fn metadata(asked: &SendRequest, problems: &mut Vec<Problem>) {
    if asked.metadata.len() > MOST_METADATA {
        problems.push(Problem::new(
            "/metadata",
            format!("may have at most {MOST_METADATA} entries"),
        ));
    }
    for (name, value) in &asked.metadata {
        let too_long = |text: &String| text.chars().count() > LONGEST_METADATA;
        if too_long(name) || too_long(value) {
            problems.push(Problem::new(
                format!("/metadata/{}", herald_crds::validate::escape(name)),
                format!("name and value may have at most {LONGEST_METADATA} characters each"),
            ));
        }
    }
}
