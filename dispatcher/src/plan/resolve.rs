//! Who and where: members are resolved in steps by a cursor, each step a short transaction; what is short shares one.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use std::vec;

use futures::future::join_all;
use herald_crds::{Address, Medium};
use jiff::Timestamp;

use super::route::{Person, Routes};
use super::sources::{Source, sources};
use crate::catalog::{Catalog, FullName};
use crate::fanout::definitions::{DefinitionError, Definitions, Groups};
use crate::id::{self, NotificationId};
use crate::message::{DefinitionHash, Request, Suppression};
use crate::metrics::{Metrics, NamespaceClass};
use crate::store::{
    Cursor, Directory, Member, NewDelivery, ResolveStep, Store, StoreError, Unresolved,
};

/// Members resolved in one transaction: those of one large notification, or of many small ones together.
pub const STEP: usize = 500;

/// Members resolved before looking again for something more urgent.
const ROUND: usize = 8 * STEP;

/// What cannot be resolved since nobody can tell what is declared is looked at again after this at the soonest, and this at
/// the latest.
const UNTOLD: (Duration, Duration) = (Duration::from_secs(30), Duration::from_mins(10));

/// Resolves the recipients of notifications.
pub struct Resolver {
    pub(super) store: Arc<dyn Store>,
    pub(super) catalog: Arc<dyn Catalog>,
    pub(super) definitions: Arc<Definitions>,
    pub(super) metrics: Arc<Metrics>,
}

/// What a round has come to.
#[derive(Debug, Default)]
pub struct Round {
    /// Channels with new rows that are due.
    pub channels: BTreeSet<FullName>,
    /// The earliest due time among new rows that are not.
    pub later: Option<Timestamp>,
    /// Notifications whose recipients cannot be resolved, and why: that does not pass by itself.
    pub refused: Vec<(NotificationId, DefinitionError)>,
    /// What the database failed to do: it is tried again.
    pub failed: Vec<StoreError>,
}

/// A notification ready to be taken one step further.
struct Ready<'a> {
    unresolved: &'a Unresolved,
    sources: Vec<Source>,
    routes: Routes,
    /// As of when members are resolved.
    at: Timestamp,
}

/// Somebody found by a source, owned.
struct Found {
    id: Arc<str>,
    address: Option<Arc<Address>>,
    locale: String,
}

impl Resolver {
    /// Takes notifications, in this order, one step further: all of them, or as many as are worth a round. Whatever it does
    /// is repeated safely.
    pub async fn round(&self, unresolved: &[Unresolved], now: Timestamp) -> Round {
        let mut round = Round::default();
        let (mut batches, mut members) = (Vec::new(), 0);
        let (mut batch, mut small) = (Vec::new(), 0);
        let mut groups = HashMap::new();
        for one in unresolved {
            let ready = match self.ready(one, &mut groups, now).await {
                Ok(Some(ready)) => ready,
                Ok(None) => continue,
                Err(DefinitionError::Store(error)) => {
                    round.failed.push(error);
                    break;
                }
                Err(error) => {
                    round.refused.push((one.request.id, error));
                    continue;
                }
            };
            let size = ready.size();
            if small + size > STEP && !batch.is_empty() {
                batches.push(std::mem::take(&mut batch));
                small = 0;
            }
            batch.push(ready);
            small += size;
            members += size;
            if members >= ROUND {
                break;
            }
        }
        if !batch.is_empty() {
            batches.push(batch);
        }
        let batches = batches.iter().map(|batch| self.batch(batch, now));
        for done in join_all(batches).await {
            match done {
                Ok(Round {
                    channels, later, ..
                }) => {
                    round.channels.extend(channels);
                    round.later = [round.later, later].into_iter().flatten().min();
                }
                Err(error) => round.failed.push(error),
            }
        }
        round
    }

    /// Makes a notification ready to be resolved; `None`: it is held, or postponed. `groups` are those that others needed.
    async fn ready<'a>(
        &self,
        unresolved: &'a Unresolved,
        groups: &mut HashMap<DefinitionHash, Groups>,
        now: Timestamp,
    ) -> Result<Option<Ready<'a>>, DefinitionError> {
        let request = &unresolved.request;
        let definition = self.definitions.template(&request.definition).await?;
        let template = &definition.compiled.definition().template;
        let sources = match &request.groups {
            None => sources(request, &Groups::new()),
            Some(hash) => {
                if !groups.contains_key(hash) {
                    let new = self.definitions.groups(hash).await?;
                    groups.insert(Arc::clone(hash), new);
                }
                sources(request, &groups[hash])
            }
        };
        let at = request.send_at.unwrap_or(request.accepted_at);
        let declared = self.catalog.current();
        if request.expires_at.is_none_or(|at| at > now)
            && !Routes::are_told(request, template, &declared)
        {
            // The longer it takes, the more of them there may be.
            let (shortest, longest) = UNTOLD;
            let waited = Duration::try_from(now.duration_since(at)).unwrap_or_default();
            let until = now + (waited / 2).clamp(shortest, longest);
            let postponed = self.store.postpone(&request.id, until).await;
            postponed.map_err(DefinitionError::Store)?;
            tracing::info!(
                notification = %request.id, %until,
                "postponed: whether its channels are declared cannot be told at the moment"
            );
            return Ok(None);
        }
        if unresolved.cursor == Cursor::default() {
            let store = DefinitionError::Store;
            let allowed = template.max_recipients();
            let confirmed = request
                .confirm_recipients
                .max(unresolved.confirmed)
                .unwrap_or(0);
            let recipients = self.count(request, &sources, at).await.map_err(store)?;
            if recipients > allowed.max(confirmed) {
                self.store
                    .hold(&request.id, recipients, allowed)
                    .await
                    .map_err(store)?;
                tracing::warn!(
                    notification = %request.id, recipients, allowed,
                    "held until it is confirmed: more recipients than the template allows"
                );
                return Ok(None);
            }
        }
        let routes = Routes::new(request, template, &declared);
        Ok(Some(Ready {
            unresolved,
            sources,
            routes,
            at,
        }))
    }

    /// Takes notifications one step further in one transaction.
    async fn batch(&self, batch: &[Ready<'_>], now: Timestamp) -> Result<Round, StoreError> {
        let mut listed = self.listed(batch).await?;
        let mut people = Vec::with_capacity(batch.len());
        let mut nexts = Vec::with_capacity(batch.len());
        for ready in batch {
            let (found, next) = self.found(ready, &mut listed).await?;
            let request = &ready.unresolved.request;
            let traceparent = request.traceparent.as_deref();
            tracing::debug!(notification = %request.id, traceparent, found = found.len(), "recipients resolved");
            people.push(found);
            nexts.push(next);
        }
        let suppressed = self.suppressed(batch, &people).await?;
        let mut round = Round::default();
        let mut steps = Vec::with_capacity(batch.len());
        let mut planned = Vec::with_capacity(batch.len());
        for ((ready, found), next) in batch.iter().zip(&people).zip(nexts) {
            let request = &ready.unresolved.request;
            let mut rows = rows(ready, found, &suppressed);
            if ready.names_people_and_addresses() {
                self.drop_reached(request, &mut rows).await?;
            }
            for row in rows.iter().filter(|row| row.suppressed.is_none()) {
                if row.due > now {
                    round.later = Some(round.later.map_or(row.due, |later| later.min(row.due)));
                } else if !round.channels.contains(&row.channel) {
                    round.channels.insert(Arc::clone(&row.channel));
                }
            }
            planned.push((request, rows.len() as u64));
            steps.push(ResolveStep {
                notification: request.id,
                from: ready.unresolved.cursor.clone(),
                next,
                rows,
            });
        }
        let taken = self.store.resolve(steps, now).await?;
        for ((request, rows), _) in planned.into_iter().zip(taken).filter(|(_, taken)| *taken) {
            let labels = NamespaceClass {
                namespace: request.namespace.to_string(),
                priority: request.priority.as_str(),
            };
            self.metrics.planned.get_or_create(&labels).inc_by(rows);
        }
        Ok(round)
    }

    /// Drops rows of bare addresses at which somebody is reached by name: that is one person, who gets one message.
    async fn drop_reached(
        &self,
        request: &Request,
        rows: &mut Vec<NewDelivery>,
    ) -> Result<(), StoreError> {
        let endpoints: Vec<(&str, &str)> = rows
            .iter()
            .map(|row| (&*row.channel, &*row.endpoint))
            .collect();
        let reached = self
            .store
            .reached(&request.namespace, &request.id, &endpoints)
            .await?;
        let mut reached = reached.into_iter();
        rows.retain(|_| !reached.next().unwrap_or(false));
        Ok(())
    }

    /// How many recipients there are at the most: somebody who is in two sources counts twice.
    async fn count(
        &self,
        request: &Request,
        sources: &[Source],
        at: Timestamp,
    ) -> Result<u64, StoreError> {
        let in_sql = async |directory: Directory<'_>| {
            self.store
                .count_members(&request.namespace, &directory, at)
                .await
        };
        let mut count = 0;
        for source in sources {
            count += match source {
                Source::People(people) => people.len() as u64,
                Source::Addresses(addresses) => addresses.len() as u64,
                Source::Managed(group) => in_sql(Directory::Managed(group)).await?,
                Source::Labels(labels) => in_sql(Directory::Labels(labels)).await?,
            };
        }
        Ok(count)
    }

    /// The people whom the batch's lists name, by namespace and in the order of the batch.
    async fn listed<'a>(
        &self,
        batch: &'a [Ready<'_>],
    ) -> Result<HashMap<&'a str, vec::IntoIter<Member>>, StoreError> {
        let mut wanted: HashMap<&str, Vec<Arc<str>>> = HashMap::new();
        for ready in batch {
            if let Some(Source::People(people)) = ready.source() {
                let ids = wanted
                    .entry(&ready.unresolved.request.namespace)
                    .or_default();
                ids.extend_from_slice(ready.part(people));
            }
        }
        let mut listed = HashMap::with_capacity(wanted.len());
        for (namespace, ids) in wanted {
            // In a list people are as they are now.
            let at = Timestamp::MAX;
            let members = self
                .store
                .members(namespace, &Directory::Ids(&ids), at, None, ids.len())
                .await?;
            listed.insert(namespace, members.into_iter());
        }
        Ok(listed)
    }

    /// The people of the next step, and the cursor after them; `None`: they were the last.
    async fn found(
        &self,
        ready: &Ready<'_>,
        listed: &mut HashMap<&str, vec::IntoIter<Member>>,
    ) -> Result<(Vec<Found>, Option<Cursor>), StoreError> {
        let Some(source) = ready.source() else {
            return Ok((Vec::new(), None));
        };
        let cursor = &ready.unresolved.cursor;
        let namespace = &*ready.unresolved.request.namespace;
        let after = cursor.after.as_ref();
        let done = ready.done();
        let in_sql = async |directory: Directory<'_>| -> Result<Vec<Found>, StoreError> {
            let members = self
                .store
                .members(namespace, &directory, ready.at, after, STEP)
                .await?;
            Ok(members.into_iter().map(Found::member).collect())
        };
        let found: Vec<Found> = match source {
            Source::Addresses(addresses) => {
                ready.part(addresses).iter().map(Found::outside).collect()
            }
            Source::People(people) => {
                let listed = listed.get_mut(namespace).into_iter().flatten();
                let of_this = listed.take(ready.part(people).len());
                of_this.map(Found::member).collect()
            }
            Source::Managed(group) => in_sql(Directory::Managed(group)).await?,
            Source::Labels(labels) => in_sql(Directory::Labels(labels)).await?,
        };
        let listed = |length: usize| {
            let done = done + found.len();
            (done < length).then(|| (done as u32, String::new()))
        };
        let after = match source {
            Source::Addresses(list) => listed(list.len()),
            Source::People(list) => listed(list.len()),
            Source::Managed(_) | Source::Labels(_) => found
                .last()
                .filter(|_| found.len() == STEP)
                .map(|last| (id::order(&last.id), last.id.to_string())),
        };
        let next = match after {
            Some(after) => Some(Cursor {
                source: cursor.source,
                after: Some(after),
            }),
            None if cursor.source as usize + 1 < ready.sources.len() => Some(Cursor {
                source: cursor.source + 1,
                after: None,
            }),
            None => None,
        };
        Ok((found, next))
    }

    /// Which endpoints of a batch's people are on the suppression list of their namespace.
    async fn suppressed<'a>(
        &self,
        batch: &'a [Ready<'_>],
        people: &'a [Vec<Found>],
    ) -> Result<Suppressed<'a>, StoreError> {
        let mut asked: HashMap<&str, Vec<(&str, &str)>> = HashMap::new();
        for (ready, found) in batch.iter().zip(people) {
            if ready.routes.mandatory {
                continue;
            }
            let endpoints = found
                .iter()
                .filter_map(|found| found.address.as_deref())
                .flat_map(|address| ready.routes.endpoints(address))
                .map(|(_, medium, endpoint)| (medium.as_str(), endpoint));
            asked
                .entry(&ready.unresolved.request.namespace)
                .or_default()
                .extend(endpoints);
        }
        let mut suppressed = Suppressed::new();
        for (namespace, endpoints) in asked {
            let answers = self.store.suppressed(namespace, &endpoints).await?;
            let listed = endpoints.into_iter().zip(answers);
            suppressed.extend(listed.filter_map(|((medium, endpoint), reason)| {
                Some(((namespace, medium, endpoint), reason?))
            }));
        }
        Ok(suppressed)
    }
}

/// Namespace, medium, endpoint, and why it is suppressed.
type Suppressed<'a> = HashMap<(&'a str, &'a str, &'a str), Suppression>;

impl Ready<'_> {
    /// The source of the next step; `None`: there is none left.
    fn source(&self) -> Option<&Source> {
        self.sources.get(self.unresolved.cursor.source as usize)
    }

    /// Whether the next step is about bare addresses, after people of the directory.
    fn names_people_and_addresses(&self) -> bool {
        matches!(self.source(), Some(Source::Addresses(_))) && self.sources.len() > 1
    }

    /// Into a list the cursor is the number of members that are done.
    fn done(&self) -> usize {
        let after = self.unresolved.cursor.after.as_ref();
        after.map_or(0, |(done, _)| *done as usize)
    }

    /// The next step's part of a list.
    fn part<'a, T>(&self, list: &'a [T]) -> &'a [T] {
        let done = self.done();
        &list[done.min(list.len())..list.len().min(done + STEP)]
    }

    /// How many members the next step has at the most; of a group in SQL a whole step is expected.
    fn size(&self) -> usize {
        match self.source() {
            None => 0,
            Some(Source::People(people)) => self.part(people).len(),
            Some(Source::Addresses(addresses)) => self.part(addresses).len(),
            Some(Source::Managed(_) | Source::Labels(_)) => STEP,
        }
    }
}

/// The rows of these people.
fn rows(ready: &Ready<'_>, found: &[Found], suppressed: &Suppressed<'_>) -> Vec<NewDelivery> {
    let Ready {
        unresolved,
        routes,
        at,
        ..
    } = ready;
    let request = &unresolved.request;
    let suppressed = |medium: Medium, endpoint: &str| {
        let endpoint = (&*request.namespace, medium.as_str(), endpoint);
        suppressed.get(&endpoint).copied()
    };
    let mut rows = Vec::with_capacity(found.len() * routes.channels.len().max(1));
    for found in found {
        let person = Person {
            id: &found.id,
            address: found.address.as_deref(),
            locale: &found.locale,
        };
        let due = *at + spread(request, found);
        routes.rows(&request.id, &person, due, suppressed, &mut rows);
    }
    rows
}

/// How much later than the others somebody gets a notification that is spread: by hash, so evenly, and the same each time.
fn spread(request: &Request, found: &Found) -> std::time::Duration {
    if request.spread_over_seconds == 0 {
        return std::time::Duration::ZERO;
    }
    let who = match &found.address {
        Some(address) if found.id.is_empty() => [&address.email, &address.phone, &address.webhook]
            .into_iter()
            .flatten()
            .next()
            .map_or("", String::as_str),
        _ => &*found.id,
    };
    let part = f64::from(id::order(who)) / f64::from(u32::MAX);
    std::time::Duration::from_secs_f64(f64::from(request.spread_over_seconds) * part)
}

impl Found {
    fn outside(address: &Address) -> Self {
        Self {
            id: Arc::from(""),
            locale: address.locale.clone().unwrap_or_default(),
            address: Some(Arc::new(address.clone())),
        }
    }

    fn member(member: Member) -> Self {
        let Member { id, recipient } = member;
        let locale = recipient
            .as_ref()
            .and_then(|recipient| recipient.locale.clone())
            .unwrap_or_default();
        let address = recipient.map(|recipient| Arc::new(recipient.addresses.clone()));
        Self {
            id,
            address,
            locale,
        }
    }
}

#[cfg(test)]
mod tests;
