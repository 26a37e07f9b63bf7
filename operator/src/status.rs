//! What is told about a resource: conditions after kstatus, an Event when they turn, and nothing that says the same again.

use herald_crds::{
    Channel, ChannelStatus, Kind, NotificationTemplate, NotificationTemplateStatus, RecipientGroup,
    RecipientGroupStatus, Schedule, ScheduleStatus, names,
};
use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{Patch, PatchParams};
use kube::runtime::events::{Event, EventType};
use kube::{Api, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::context::Context;
use crate::error::Error;

/// `Ready`: it does what it is for.
pub const READY: &str = "Ready";
/// `Reconciling`: it is on its way, or waits for something else (kstatus).
pub const RECONCILING: &str = "Reconciling";
/// `Stalled`: only an edit of this resource cures it (kstatus).
pub const STALLED: &str = "Stalled";

/// Most characters of a message.
const LONGEST_MESSAGE: usize = 1024;

/// One of the four kinds, as far as telling about it goes.
pub trait Told:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + std::fmt::Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// Which one.
    const KIND: Kind;
    /// What is told.
    type Status: Clone + Default + PartialEq + Serialize + DeserializeOwned + Send + Sync;
    /// What was told last.
    fn status(&self) -> Option<&Self::Status>;
    /// The two things that every status begins with.
    fn head(status: &mut Self::Status) -> (&mut Option<i64>, &mut Vec<Condition>);
}

macro_rules! told {
    ($kind:ident, $status:ty) => {
        impl Told for $kind {
            const KIND: Kind = Kind::$kind;
            type Status = $status;
            fn status(&self) -> Option<&$status> {
                self.status.as_ref()
            }
            fn head(status: &mut $status) -> (&mut Option<i64>, &mut Vec<Condition>) {
                (&mut status.observed_generation, &mut status.conditions)
            }
        }
    };
}

told!(Channel, ChannelStatus);
told!(NotificationTemplate, NotificationTemplateStatus);
told!(RecipientGroup, RecipientGroupStatus);
told!(Schedule, ScheduleStatus);

/// Why something is as it is: a name for programs, and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Because {
    /// In `UpperCamelCase`.
    pub reason: &'static str,
    /// What it is, and what to do about it.
    pub message: String,
}

impl Because {
    /// A reason.
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { reason, message }
    }
}

/// How a resource is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It does what it is for.
    Ready(Because),
    /// It does, and is being changed.
    Changing(Because),
    /// It does not yet: something else has to come, which is watched for or tried again.
    Waiting(Because),
    /// It does not, until it is edited.
    Stalled(Because),
}

impl Verdict {
    fn because(&self) -> &Because {
        match self {
            Self::Ready(because)
            | Self::Changing(because)
            | Self::Waiting(because)
            | Self::Stalled(because) => because,
        }
    }

    fn is_ready(&self) -> bool {
        matches!(self, Self::Ready(_) | Self::Changing(_))
    }

    fn parts(&self) -> Vec<Part> {
        let because = self.because();
        let mut parts = vec![Part::new(READY, self.is_ready(), because.clone())];
        match self {
            Self::Ready(_) => {}
            Self::Changing(_) | Self::Waiting(_) => {
                parts.push(Part::new(RECONCILING, true, because.clone()));
            }
            Self::Stalled(_) => parts.push(Part::new(STALLED, true, because.clone())),
        }
        parts
    }
}

/// One condition, before it is known since when it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    kind: &'static str,
    holds: bool,
    because: Because,
}

impl Part {
    /// A condition of this type.
    pub fn new(kind: &'static str, holds: bool, because: Because) -> Self {
        Self {
            kind,
            holds,
            because,
        }
    }
}

/// The conditions that say so, in the order of their types. Those that held before keep the time since when.
pub fn conditions(
    verdict: &Verdict,
    further: Vec<Part>,
    before: &[Condition],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let mut conditions: Vec<Condition> = verdict
        .parts()
        .into_iter()
        .chain(further)
        .map(|part| {
            let status = if part.holds { "True" } else { "False" };
            let since = before
                .iter()
                .find(|old| old.type_ == part.kind && old.status == status)
                .map_or_else(|| whole_second(now), |old| old.last_transition_time.clone());
            let mut message = part.because.message;
            if let Some((end, _)) = message.char_indices().nth(LONGEST_MESSAGE) {
                message.truncate(end);
            }
            Condition {
                type_: part.kind.to_owned(),
                status: status.to_owned(),
                reason: part.because.reason.to_owned(),
                message,
                observed_generation: generation,
                last_transition_time: since,
            }
        })
        .collect();
    conditions.sort_by(|one, other| one.type_.cmp(&other.type_));
    conditions
}

/// As the API server would answer: it keeps no fractions.
pub fn whole_second(time: Timestamp) -> Time {
    Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
}

/// What was told last of a resource: by the watch, or by us if that was later.
pub fn before<K: Told>(ctx: &Context, resource: &K) -> K::Status {
    // The watch's own copy is looked at in place: written again only if we wrote since.
    match ctx.written.later(resource) {
        Some(latest) => serde_json::from_value(latest["status"].clone()).unwrap_or_default(),
        None => resource.status().cloned().unwrap_or_default(),
    }
}

/// Writes what is told of a resource, with `rest` for what is beside the conditions, unless it says the same as before.
///
/// An Event tells when Ready turns, or its reason.
pub async fn tell<K: Told>(
    ctx: &Context,
    resource: &K,
    verdict: &Verdict,
    further: Vec<Part>,
    rest: impl FnOnce(&mut K::Status),
) -> Result<(), Error> {
    let mut told = before(ctx, resource);
    let generation = resource.meta().generation;
    let previous = {
        let (_, conditions) = K::head(&mut told);
        conditions.sort_by(|one, other| one.type_.cmp(&other.type_));
        conditions.clone()
    };
    let mut wanted = told.clone();
    {
        let (observed, conditions_of) = K::head(&mut wanted);
        *observed = generation;
        *conditions_of = conditions(verdict, further, &previous, generation, (ctx.now)());
    }
    rest(&mut wanted);
    if wanted == told {
        return Ok(());
    }
    write::<K>(ctx, resource.meta(), &wanted).await?;
    let ready = |conditions: &[Condition]| {
        let ready = conditions.iter().find(|one| one.type_ == READY)?;
        Some((ready.status.clone(), ready.reason.clone()))
    };
    let (_, now) = K::head(&mut wanted);
    if ready(&previous) != ready(now) {
        announce(ctx, resource, verdict).await;
    }
    Ok(())
}

/// Writes the status of a resource that cannot be read: it has metadata and nothing else.
pub async fn tell_unreadable<K: Told>(
    ctx: &Context,
    meta: &kube::core::ObjectMeta,
    error: &str,
) -> Result<(), Error> {
    let message = format!(
        "it cannot be read, and is left as it is until it is mended or the operator is as new as it: {error}"
    );
    let key = (
        K::KIND.as_str().to_owned(),
        meta.namespace.clone().unwrap_or_default(),
        meta.name.clone().unwrap_or_default(),
    );
    let told = ctx.written.of(&key);
    let same = |told: &Value| {
        let conditions = told["status"]["conditions"].as_array();
        told["metadata"]["uid"] == json!(meta.uid)
            && told["status"]["observedGeneration"] == json!(meta.generation)
            && conditions.is_some_and(|all| all.iter().all(|one| one["message"] == message))
    };
    // What was told before cannot be read either; asked for it, the watch has only the metadata.
    if told.is_some_and(|told| same(&told)) {
        return Ok(());
    }
    let verdict = Verdict::Stalled(Because::new("ReadResource", message));
    let mut wanted = K::Status::default();
    {
        let (observed, conditions_of) = K::head(&mut wanted);
        *observed = meta.generation;
        *conditions_of = conditions(&verdict, Vec::new(), &[], meta.generation, (ctx.now)());
    }
    write::<K>(ctx, meta, &wanted).await
}

async fn write<K>(
    ctx: &Context,
    meta: &kube::core::ObjectMeta,
    status: &K::Status,
) -> Result<(), Error>
where
    K: Told,
{
    let name = meta.name.clone().unwrap_or_default();
    let namespace = meta.namespace.clone().unwrap_or_default();
    let api: Api<kube::core::PartialObjectMeta<K>> =
        Api::namespaced(ctx.client.clone(), &namespace);
    let patch = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        // With another uid it is another resource of the same name, which knows nothing of this.
        "metadata": {"name": name, "namespace": namespace, "uid": meta.uid},
        "status": status,
    });
    let parameters = PatchParams::apply(names::STATUS_FIELD_MANAGER).force();
    let written = api
        .patch_status(&name, &parameters, &Patch::Apply(&patch))
        .await;
    let answer = match written {
        Ok(answer) => answer,
        // It is gone, or another one has taken its place: nobody is left to be told.
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        Err(source) => {
            return Err(Error::WriteStatus {
                name: format!("{} {namespace}/{name}", K::KIND.as_str()),
                source: Box::new(source),
            });
        }
    };
    ctx.metrics.wrote(K::KIND.as_str(), "status");
    let mut remembered = patch;
    remembered["metadata"]["resourceVersion"] = json!(answer.metadata.resource_version);
    remembered["metadata"]["finalizers"] = json!(answer.metadata.finalizers);
    let key = (K::KIND.as_str().to_owned(), namespace, name);
    ctx.written.remember_value(key, remembered);
    Ok(())
}

/// An Event, which may be lost: what counts is the status.
async fn announce<K: Told>(ctx: &Context, resource: &K, verdict: &Verdict) {
    let because = verdict.because();
    let type_ = match verdict {
        Verdict::Ready(_) | Verdict::Changing(_) => EventType::Normal,
        Verdict::Waiting(_) | Verdict::Stalled(_) => EventType::Warning,
    };
    let mut note = because.message.clone();
    if let Some((end, _)) = note.char_indices().nth(LONGEST_MESSAGE / 2) {
        note.truncate(end);
    }
    let event = Event {
        type_,
        reason: because.reason.to_owned(),
        note: Some(note),
        action: "Reconcile".to_owned(),
        secondary: None,
    };
    match ctx
        .recorder
        .publish(&event, &resource.object_ref(&()))
        .await
    {
        Ok(()) => ctx.metrics.wrote("Event", "event"),
        Err(error) => {
            tracing::debug!(%error, resource = resource.name_any(), "an Event was not taken");
        }
    }
}

/// Problems as one sentence, each with its path, in a list that has an end.
pub fn sentence<'a>(problems: impl IntoIterator<Item = &'a herald_crds::Problem>) -> String {
    const MOST: usize = 8;
    let mut problems = problems.into_iter();
    let told: Vec<String> = problems
        .by_ref()
        .take(MOST)
        .map(ToString::to_string)
        .collect();
    let more = problems.count();
    let told = told.join("; ");
    if more > 0 {
        format!("{told}; and {more} more")
    } else {
        told
    }
}

/// A status without what is only of the moment, for tests.
#[cfg(test)]
pub fn summary(status: &Value) -> Vec<String> {
    status["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|c| {
            format!(
                "{}={} {}",
                c["type"].as_str().unwrap_or_default(),
                c["status"].as_str().unwrap_or_default(),
                c["reason"].as_str().unwrap_or_default()
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn told(verdict: &Verdict, before: &[Condition], now: i64) -> Vec<(String, String, i64)> {
        conditions(verdict, Vec::new(), before, Some(3), at(now))
            .into_iter()
            .map(|c| (c.type_, c.status, c.last_transition_time.0.as_second()))
            .collect()
    }

    fn because() -> Because {
        Because::new("Reason", "message")
    }

    #[test]
    fn each_verdict_has_its_conditions() {
        let types = |verdict: Verdict| {
            told(&verdict, &[], 5)
                .into_iter()
                .map(|(kind, status, _)| format!("{kind}={status}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(types(Verdict::Ready(because())), ["Ready=True"]);
        assert_eq!(
            types(Verdict::Changing(because())),
            ["Ready=True", "Reconciling=True"]
        );
        assert_eq!(
            types(Verdict::Waiting(because())),
            ["Ready=False", "Reconciling=True"]
        );
        assert_eq!(
            types(Verdict::Stalled(because())),
            ["Ready=False", "Stalled=True"]
        );
    }

    #[test]
    fn a_condition_that_holds_on_keeps_its_time() {
        let first = conditions(&Verdict::Waiting(because()), vec![], &[], Some(1), at(5));
        let again = told(&Verdict::Waiting(because()), &first, 9);
        assert!(again.iter().all(|(_, _, since)| *since == 5));
        let turned = told(&Verdict::Ready(because()), &first, 9);
        assert_eq!(turned, [("Ready".to_owned(), "True".to_owned(), 9)]);
    }

    #[test]
    fn many_problems_are_told_in_a_sentence_with_an_end() {
        let problems: Vec<_> = (0..20)
            .map(|n| herald_crds::Problem::new(format!("/spec/{n}"), "is wrong"))
            .collect();
        let told = sentence(&problems);
        assert!(told.starts_with("/spec/0: is wrong; /spec/1"), "{told}");
        assert!(told.ends_with("and 12 more"), "{told}");
    }
}
