//! Who and where: members are resolved in steps by a cursor, each step a short transaction.

use std::collections::HashMap;
use std::sync::Arc;

use herald_crds::{Address, Medium};
use jiff::Timestamp;

use super::route::{Person, Routes};
use super::sources::{Source, sources};
use crate::catalog::{Catalog, FullName};
use crate::fanout::definitions::{DefinitionError, Definitions, Groups};
use crate::id;
use crate::message::Request;
use crate::metrics::{Metrics, NamespaceClass};
use crate::store::{Cursor, Directory, NewDelivery, Store, StoreError, Unresolved};

/// Members resolved in one step.
pub const STEP: usize = 500;

/// Resolves the recipients of notifications.
pub struct Resolver {
    pub(super) store: Arc<dyn Store>,
    pub(super) catalog: Arc<dyn Catalog>,
    pub(super) definitions: Arc<Definitions>,
    pub(super) metrics: Arc<Metrics>,
}

/// What a step has come to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stepped {
    /// Channels with new rows that are due.
    pub channels: Vec<FullName>,
    /// The earliest due time among new rows that are not.
    pub later: Option<Timestamp>,
}

/// Somebody found by a source, owned.
struct Found {
    id: Arc<str>,
    address: Option<Arc<Address>>,
    locale: String,
}

impl Resolver {
    /// Takes a notification one step further. Whatever it does is repeated safely.
    pub async fn step(
        &self,
        unresolved: &Unresolved,
        now: Timestamp,
    ) -> Result<Stepped, DefinitionError> {
        let request = &unresolved.request;
        let ready = self.definitions.template(&request.definition).await?;
        let groups = match &request.groups {
            Some(hash) => self.definitions.groups(hash).await?,
            None => Groups::new(),
        };
        let template = &ready.compiled.definition().template;
        let sources = sources(request, &groups);
        let at = request.send_at.unwrap_or(request.accepted_at);
        let store = DefinitionError::Store;

        if unresolved.cursor == Cursor::default() {
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
                return Ok(Stepped::default());
            }
        }

        let (found, next) = self
            .found(request, &sources, &unresolved.cursor, at)
            .await
            .map_err(store)?;
        let traceparent = request.traceparent.as_deref();
        tracing::debug!(notification = %request.id, traceparent, found = found.len(), "recipients resolved");
        let routes = Routes::new(request, template, &self.catalog.current());
        let rows = self
            .rows(request, &routes, &found, at)
            .await
            .map_err(store)?;
        let is_done = self
            .store
            .resolve_step(&request.id, &unresolved.cursor, next.as_ref(), &rows, now)
            .await
            .map_err(store)?;
        let mut stepped = Stepped::default();
        if is_done {
            let labels = NamespaceClass {
                namespace: request.namespace.to_string(),
                priority: request.priority.as_str(),
            };
            self.metrics
                .planned
                .get_or_create(&labels)
                .inc_by(rows.len() as u64);
            for row in rows.iter().filter(|row| row.suppressed.is_none()) {
                if row.due > now {
                    stepped.later = Some(stepped.later.map_or(row.due, |later| later.min(row.due)));
                } else if !stepped.channels.contains(&row.channel) {
                    stepped.channels.push(Arc::clone(&row.channel));
                }
            }
        }
        Ok(stepped)
    }

    /// How many recipients there are at the most: somebody who is in two sources counts twice.
    pub(crate) async fn count(
        &self,
        request: &Request,
        sources: &[Source],
        at: Timestamp,
    ) -> Result<u64, StoreError> {
        let mut count = 0;
        for source in sources {
            count += match source {
                Source::People(people) => people.len() as u64,
                Source::Addresses(addresses) => addresses.len() as u64,
                Source::Managed(group) => {
                    self.store
                        .count_members(&request.namespace, &Directory::Managed(group), at)
                        .await?
                }
                Source::Labels(labels) => {
                    self.store
                        .count_members(&request.namespace, &Directory::Labels(labels), at)
                        .await?
                }
            };
        }
        Ok(count)
    }

    /// The people of the next step, and the cursor after them; `None`: they were the last.
    async fn found(
        &self,
        request: &Request,
        sources: &[Source],
        cursor: &Cursor,
        at: Timestamp,
    ) -> Result<(Vec<Found>, Option<Cursor>), StoreError> {
        let index = cursor.source as usize;
        let Some(source) = sources.get(index) else {
            return Ok((Vec::new(), None));
        };
        // Into a list the cursor is the number of members that are done.
        let done = cursor.after.as_ref().map_or(0, |(done, _)| *done as usize);
        let store = &self.store;
        let namespace = &request.namespace;
        let after = cursor.after.as_ref();
        let found: Vec<Found> = match source {
            Source::Addresses(addresses) => addresses
                .iter()
                .skip(done)
                .take(STEP)
                .map(Found::outside)
                .collect(),
            Source::People(people) => {
                let step = &people[done.min(people.len())..people.len().min(done + STEP)];
                store
                    .members(namespace, &Directory::Ids(step), at, None, STEP)
                    .await?
                    .into_iter()
                    .map(Found::member)
                    .collect()
            }
            Source::Managed(group) => store
                .members(namespace, &Directory::Managed(group), at, after, STEP)
                .await?
                .into_iter()
                .map(Found::member)
                .collect(),
            Source::Labels(labels) => store
                .members(namespace, &Directory::Labels(labels), at, after, STEP)
                .await?
                .into_iter()
                .map(Found::member)
                .collect(),
        };
        let after = match source {
            Source::Addresses(list) if done + found.len() < list.len() => {
                Some((done + found.len(), ""))
            }
            Source::People(list) if done + found.len() < list.len() => {
                Some((done + found.len(), ""))
            }
            Source::Addresses(_) | Source::People(_) => None,
            Source::Managed(_) | Source::Labels(_) => match found.last() {
                Some(last) if found.len() == STEP => {
                    Some((id::order(&last.id) as usize, &*last.id))
                }
                _ => None,
            },
        };
        let next = match after {
            Some((order, id)) => Some(Cursor {
                source: cursor.source,
                after: Some((order as u32, id.to_owned())),
            }),
            None if index + 1 < sources.len() => Some(Cursor {
                source: cursor.source + 1,
                after: None,
            }),
            None => None,
        };
        Ok((found, next))
    }

    /// The rows of these people.
    async fn rows(
        &self,
        request: &Request,
        routes: &Routes,
        found: &[Found],
        at: Timestamp,
    ) -> Result<Vec<NewDelivery>, StoreError> {
        let suppressed = if routes.mandatory {
            HashMap::new()
        } else {
            let endpoints: Vec<(&str, &str)> = found
                .iter()
                .filter_map(|found| found.address.as_deref())
                .flat_map(|address| routes.endpoints(address))
                .map(|(_, medium, endpoint)| (medium.as_str(), endpoint))
                .collect();
            let answers = self
                .store
                .suppressed(&request.namespace, &endpoints)
                .await?;
            endpoints
                .into_iter()
                .zip(answers)
                .filter(|(_, is)| *is)
                .collect()
        };
        let is_suppressed =
            |medium: Medium, endpoint: &str| suppressed.contains_key(&(medium.as_str(), endpoint));
        let mut rows = Vec::with_capacity(found.len() * routes.channels.len().max(1));
        for found in found {
            let person = Person {
                id: &found.id,
                address: found.address.as_deref(),
                locale: &found.locale,
            };
            let due = at + spread(request, found);
            routes.rows(&request.id, &person, due, is_suppressed, &mut rows);
        }
        Ok(rows)
    }
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

    fn member(member: crate::store::Member) -> Self {
        let crate::store::Member { id, recipient } = member;
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
