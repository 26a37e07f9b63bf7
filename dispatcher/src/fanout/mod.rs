//! A chunk becomes deliveries: consent again, business deduplication, render, bundle.
//!
//! Repeatable: a crash between here and the mark in SQL fans the same chunk out again, with the same ids, rounds and
//! attempts, which is dropped where deliveries are settled.

pub mod bundle;
pub mod definitions;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use herald_crds::render::{MAX_RENDERED, Parameters, Recipient};
use herald_crds::{ChannelSpec, Priority};
use jiff::Timestamp;

use self::definitions::{DefinitionError, Definitions, Ready};
use crate::catalog::{Catalog, FullName};
use crate::id::NotificationId;
use crate::message::{Delivery, Event, Failure, Request, Step, Suppression};
use crate::store::{Directory, Store, StoreError, Waiting};

/// Notifications kept ready for rendering.
const MOST_PREPARED: usize = 256;

/// Most bytes of their parameters.
const MOST_BYTES: usize = 16 * 1024 * 1024;

/// A notification ready to be rendered for its recipients.
#[derive(Debug)]
pub struct Prepared {
    /// What was asked.
    pub request: Arc<Request>,
    /// Its definition.
    pub ready: Arc<Ready>,
    /// Its parameters, in the form that templates read.
    pub parameters: Parameters,
    /// The template's business key for these parameters; `None`: it has none.
    key: Result<Option<String>, Failure>,
}

/// What a chunk has become.
#[derive(Debug, Default)]
pub struct FannedOut {
    /// Deliveries to be handed to the broker.
    pub deliveries: Vec<Delivery>,
    /// Rows that end here, with their reasons.
    pub ended: Vec<Event>,
    /// Rows that have left the waiting room with this chunk: `(row, round, attempt)`.
    pub left: Vec<(i64, u16, u16)>,
    /// Rows that are to rest: their template is suspended.
    pub resting: Vec<i64>,
}

/// Turns rows into deliveries.
pub struct Fanout {
    store: Arc<dyn Store>,
    catalog: Arc<dyn Catalog>,
    definitions: Arc<Definitions>,
    prepared: Mutex<HashMap<NotificationId, Arc<Prepared>>>,
}

impl Fanout {
    /// A fan-out that has rendered nothing yet.
    pub fn new(
        store: Arc<dyn Store>,
        catalog: Arc<dyn Catalog>,
        definitions: Arc<Definitions>,
    ) -> Self {
        Self {
            store,
            catalog,
            definitions,
            prepared: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NotificationId, Arc<Prepared>>> {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fans out a chunk of one channel and class. Rows whose notification or definition cannot be read end as failed.
    pub async fn chunk(
        &self,
        channel: &FullName,
        spec: &ChannelSpec,
        priority: Priority,
        rows: Vec<Waiting>,
        now: Timestamp,
    ) -> Result<FannedOut, StoreError> {
        let prepared = self.prepare(&rows).await?;
        for one in prepared.values().flatten() {
            let Request {
                id, traceparent, ..
            } = &*one.request;
            tracing::debug!(notification = %id, traceparent = traceparent.as_deref(), "fanning out");
        }
        let mut fanned = FannedOut::default();
        let mut rows: Vec<(Waiting, Arc<Prepared>)> = rows
            .into_iter()
            .filter_map(|row| match prepared.get(&row.notification) {
                // Before all else: what is too late does not rest either.
                Some(Ok(prepared)) if prepared.request.expires_at.is_some_and(|at| at <= now) => {
                    fanned.end(&row, priority, now, Step::Expired);
                    None
                }
                Some(Ok(prepared)) if self.is_suspended(&prepared.request) => {
                    fanned.resting.push(row.row);
                    None
                }
                Some(Ok(prepared)) if !self.may_take(channel, spec, &prepared.request) => {
                    let namespace = &prepared.request.namespace;
                    let failure = Failure {
                        reason: Arc::from("channel-not-allowed"),
                        detail: format!(
                            "{channel} does not allow notifications of namespace {namespace:?} any more (its allowedNamespaces)"
                        ),
                        provider: None,
                    };
                    fanned.end(&row, priority, now, failed(failure));
                    None
                }
                Some(Ok(prepared)) => Some((row, Arc::clone(prepared))),
                Some(Err(failure)) => {
                    fanned.end(&row, priority, now, failed(failure.clone()));
                    None
                }
                None => {
                    let detail =
                        "the notification is not in the database, or cannot be read".to_owned();
                    let failure = Failure {
                        reason: Arc::from("unknown-notification"),
                        detail,
                        provider: None,
                    };
                    fanned.end(&row, priority, now, failed(failure));
                    None
                }
            })
            .collect();

        self.drop_unwanted(spec, priority, &mut rows, &mut fanned, now)
            .await?;
        self.drop_duplicates(channel, priority, &mut rows, &mut fanned, now)
            .await?;
        let people = self.people(&rows).await?;

        fanned.deliveries.reserve(rows.len());
        for (row, prepared) in rows {
            let (place, round, attempt) = (row.row, row.round, row.attempt);
            match deliver(
                &row,
                &prepared,
                spec,
                priority,
                people.get(&row.recipient),
                now,
            ) {
                Ok(delivery) => {
                    fanned.left.push((place, round, attempt));
                    fanned.deliveries.push(delivery);
                }
                Err(failure) => fanned.end(&row, priority, now, failed(failure)),
            }
        }
        Ok(fanned)
    }

    /// Makes one notification ready from what a message carried, without SQL.
    pub fn prepare_carried(&self, request: &Arc<Request>, ready: Arc<Ready>) -> Arc<Prepared> {
        Arc::new(prepare(Arc::clone(request), ready))
    }

    /// Whether a notification may still take a channel: it was asked when it was accepted, which may be long ago.
    fn may_take(&self, channel: &FullName, spec: &ChannelSpec, request: &Request) -> bool {
        let own = channel.split_once('/').map_or("", |(own, _)| own);
        let namespace = &*request.namespace;
        if own == namespace {
            return true;
        }
        let declared = self.catalog.current();
        // Where its labels are asked for and not known, nobody can tell: then what was answered before counts.
        let allowed = spec.allowed_namespaces.as_ref();
        let is_unknown = allowed.is_some_and(|allowed| allowed.selector.is_some())
            && !declared.namespace_labels.contains_key(namespace);
        is_unknown || declared.allows(own, spec, namespace)
    }

    fn is_suspended(&self, request: &Request) -> bool {
        let name = format!("{}/{}", request.namespace, request.template);
        self.catalog.current().is_suspended(&name)
    }

    async fn prepare(
        &self,
        rows: &[Waiting],
    ) -> Result<HashMap<NotificationId, Result<Arc<Prepared>, Failure>>, StoreError> {
        let mut found = HashMap::new();
        let mut missing = Vec::new();
        {
            let kept = self.lock();
            for row in rows {
                if found.contains_key(&row.notification) {
                    continue;
                }
                match kept.get(&row.notification) {
                    Some(prepared) => {
                        found.insert(row.notification, Ok(Arc::clone(prepared)));
                    }
                    None if missing.last() != Some(&row.notification) => {
                        missing.push(row.notification);
                    }
                    None => {}
                }
            }
        }
        if missing.is_empty() {
            return Ok(found);
        }
        missing.sort_unstable();
        missing.dedup();
        for request in self.store.requests(&missing).await? {
            let id = request.id;
            let prepared = match self.definitions.template(&request.definition).await {
                Ok(ready) => {
                    // Rows know their recipients; ten thousand of them need not be kept.
                    let mut request = Arc::unwrap_or_clone(request);
                    request.recipients = Vec::new();
                    Ok(Arc::new(prepare(Arc::new(request), ready)))
                }
                Err(DefinitionError::Store(error)) => return Err(error),
                Err(error) => Err(Failure {
                    reason: Arc::from("definition"),
                    detail: error.to_string(),
                    provider: None,
                }),
            };
            if let Ok(prepared) = &prepared {
                let mut kept = self.lock();
                let bytes = |one: &Arc<Prepared>| one.request.parameters.get().len();
                if kept.len() >= MOST_PREPARED
                    || kept.values().map(bytes).sum::<usize>() > MOST_BYTES
                {
                    // Whatever is still needed is back after one look into SQL.
                    kept.clear();
                }
                kept.insert(id, Arc::clone(prepared));
            }
            found.insert(id, prepared);
        }
        Ok(found)
    }

    /// Ends what goes to an address that was suppressed since it was planned.
    async fn drop_unwanted(
        &self,
        spec: &ChannelSpec,
        priority: Priority,
        rows: &mut Vec<(Waiting, Arc<Prepared>)>,
        fanned: &mut FannedOut,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let medium = spec.medium.as_str();
        let mut by_namespace: BTreeMap<Arc<str>, Vec<usize>> = BTreeMap::new();
        for (index, (_, prepared)) in rows.iter().enumerate() {
            if !prepared.ready.compiled.definition().template.mandatory {
                by_namespace
                    .entry(Arc::clone(&prepared.request.namespace))
                    .or_default()
                    .push(index);
            }
        }
        let mut unwanted = vec![None; rows.len()];
        for (namespace, indices) in by_namespace {
            let addresses: Vec<(&str, &str)> = indices
                .iter()
                .map(|i| (medium, &*rows[*i].0.endpoint))
                .collect();
            let answers = self.store.suppressed(&namespace, &addresses).await?;
            for (index, reason) in indices.into_iter().zip(answers) {
                unwanted[index] = reason;
            }
        }
        drop_marked(rows, &unwanted, |row, reason| {
            fanned.end(row, priority, now, Step::Suppressed { reason });
        });
        Ok(())
    }

    /// Ends what tells a recipient of a business event that another delivery has told already.
    async fn drop_duplicates(
        &self,
        channel: &FullName,
        priority: Priority,
        rows: &mut Vec<(Waiting, Arc<Prepared>)>,
        fanned: &mut FannedOut,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut by_template: BTreeMap<(Arc<str>, Arc<str>, u32), Vec<usize>> = BTreeMap::new();
        let mut failures = Vec::new();
        for (index, (row, prepared)) in rows.iter().enumerate() {
            // What came back has passed here before.
            if row.delivery.is_some() {
                continue;
            }
            let Some(deduplication) = &prepared.ready.compiled.definition().template.deduplication
            else {
                continue;
            };
            match &prepared.key {
                Ok(Some(_)) => {
                    let Request {
                        namespace,
                        template,
                        ..
                    } = &*prepared.request;
                    let window = deduplication.window().as_secs() as u32;
                    let claim = (Arc::clone(namespace), Arc::clone(template), window);
                    by_template.entry(claim).or_default().push(index);
                }
                Ok(None) => {}
                Err(failure) => failures.push((index, failure.clone())),
            }
        }
        let mut duplicate = vec![None; rows.len()];
        for ((namespace, template, window), indices) in by_template {
            let claims: Vec<_> = indices
                .iter()
                .map(|index| {
                    let (row, prepared) = &rows[*index];
                    let who = if row.recipient.is_empty() {
                        &row.endpoint
                    } else {
                        &row.recipient
                    };
                    let key = prepared
                        .key
                        .as_ref()
                        .ok()
                        .and_then(Option::as_deref)
                        .unwrap_or_default();
                    (format!("{channel}\u{1f}{who}\u{1f}{key}"), row.id)
                })
                .collect();
            let owned = self
                .store
                .claim(&namespace, &template, &claims, window, now)
                .await?;
            for (index, is_owner) in indices.into_iter().zip(owned) {
                duplicate[index] = (!is_owner).then_some(Suppression::Duplicate);
            }
        }
        let mut failures: HashMap<i64, Failure> = failures
            .into_iter()
            .map(|(index, failure)| {
                duplicate[index] = Some(Suppression::Duplicate);
                (rows[index].0.row, failure)
            })
            .collect();
        drop_marked(rows, &duplicate, |row, reason| {
            let step = match failures.remove(&row.row) {
                Some(failure) => failed(failure),
                None => Step::Suppressed { reason },
            };
            fanned.end(row, priority, now, step);
        });
        Ok(())
    }

    /// Whoever of the directory a template may want to know more of.
    async fn people(
        &self,
        rows: &[(Waiting, Arc<Prepared>)],
    ) -> Result<HashMap<Arc<str>, Arc<crate::store::Recipient>>, StoreError> {
        let mut wanted: BTreeMap<Arc<str>, (Timestamp, Vec<Arc<str>>)> = BTreeMap::new();
        for (row, prepared) in rows {
            if prepared.ready.needs_labels && row.delivery.is_none() && !row.recipient.is_empty() {
                let Request {
                    namespace,
                    accepted_at,
                    send_at,
                    ..
                } = &*prepared.request;
                let at = send_at.unwrap_or(*accepted_at);
                let (_, ids) = wanted
                    .entry(Arc::clone(namespace))
                    .or_insert_with(|| (at, Vec::new()));
                ids.push(Arc::clone(&row.recipient));
            }
        }
        let mut people = HashMap::new();
        for (namespace, (at, ids)) in wanted {
            let members = self
                .store
                .members(&namespace, &Directory::Ids(&ids), at, None, ids.len())
                .await?;
            people.extend(
                members
                    .into_iter()
                    .filter_map(|member| Some((member.id, member.recipient?))),
            );
        }
        Ok(people)
    }
}

impl FannedOut {
    fn end(&mut self, row: &Waiting, priority: Priority, at: Timestamp, step: Step) {
        self.left.push((row.row, row.round, row.attempt));
        self.ended.push(Event {
            delivery: row.id,
            notification: row.notification,
            at,
            round: row.round,
            attempt: row.attempt,
            tried: row.tried,
            priority,
            step,
        });
    }
}

fn prepare(request: Arc<Request>, ready: Arc<Ready>) -> Prepared {
    // Accepted as JSON, so it is JSON.
    let json: serde_json::Value =
        serde_json::from_str(request.parameters.get()).unwrap_or_default();
    let parameters = ready.compiled.prepare(json);
    let key = ready
        .compiled
        .deduplication_key(&parameters)
        .map_err(|error| render_failure(&error));
    Prepared {
        request,
        ready,
        parameters,
        key,
    }
}

/// One delivery, complete in itself.
pub(crate) fn deliver(
    row: &Waiting,
    prepared: &Prepared,
    spec: &ChannelSpec,
    priority: Priority,
    person: Option<&Arc<crate::store::Recipient>>,
    now: Timestamp,
) -> Result<Delivery, Failure> {
    let request = &prepared.request;
    if let Some(returned) = &row.delivery {
        return Ok(Delivery {
            priority,
            round: row.round,
            attempt: row.attempt,
            tried: row.tried,
            ready_at: row.due,
            released_at: now,
            ..(**returned).clone()
        });
    }
    let definition = prepared.ready.compiled.definition();
    let locale = if row.locale.is_empty() {
        definition.template.default_locale()
    } else {
        &row.locale
    };
    let recipient = Arc::new(Recipient {
        id: (!row.recipient.is_empty()).then(|| Arc::clone(&row.recipient)),
        locale: Arc::from(locale),
        labels: person
            .map(|person| person.labels.clone())
            .unwrap_or_default(),
    });
    let content = prepared
        .ready
        .compiled
        .render(spec.medium, locale, &prepared.parameters, &recipient)
        .map_err(|error| render_failure(&error))?;
    if content.len() > MAX_RENDERED {
        let detail = format!(
            "the rendered message is {} bytes long, {MAX_RENDERED} are allowed",
            content.len()
        );
        return Err(Failure {
            reason: Arc::from("too-large"),
            detail,
            provider: None,
        });
    }
    Ok(Delivery {
        id: row.id,
        notification: row.notification,
        namespace: Arc::clone(&request.namespace),
        template: Arc::clone(&request.template),
        recipient: Arc::clone(&row.recipient),
        endpoint: Arc::clone(&row.endpoint),
        priority,
        accepted_at: request.accepted_at,
        ready_at: row.due,
        released_at: now,
        expires_at: request.expires_at,
        round: row.round,
        attempt: row.attempt,
        tried: row.tried,
        provider: None,
        content,
        sensitive: definition.has_sensitive_parameters(),
        traceparent: request.traceparent.clone(),
    })
}

fn render_failure(error: &herald_crds::render::RenderError) -> Failure {
    Failure {
        reason: Arc::from(error.reason()),
        detail: error.to_string(),
        provider: None,
    }
}

fn failed(error: Failure) -> Step {
    Step::Failed {
        error,
        delivery: None,
        address_gone: false,
    }
}

/// Removes the rows marked, keeping the order of the others.
fn drop_marked(
    rows: &mut Vec<(Waiting, Arc<Prepared>)>,
    marked: &[Option<Suppression>],
    mut dropped: impl FnMut(&Waiting, Suppression),
) {
    let mut marks = marked.iter();
    rows.retain(|(row, _)| {
        let mark = marks.next().copied().flatten();
        if let Some(reason) = mark {
            dropped(row, reason);
        }
        mark.is_none()
    });
}
