//! Dry runs: what would be sent, to whom, and how it would look.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use herald_crds::render::Recipient as RenderedFor;
use herald_crds::{Address, Medium, Priority};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::preview::{self, Block};
use super::{Api, Caller, Kind, Problem, permissions, schema};
use crate::accept::Prepared;
use crate::catalog::FullName;
use crate::fanout::definitions::Groups;
use crate::message::{Request, Suppression};
use crate::plan::route::{Person, Routes};
use crate::plan::sources::{Source, sources};
use crate::store::{Directory, NewDelivery, Recipient};

/// People whose channels are worked out one by one; with more, the rest is counted only.
pub const LOOKED_AT: usize = 10_000;

/// People asked for at a time.
const STEP: usize = 500;

/// Messages that are rendered.
const SAMPLES: usize = 2;

/// What would be sent.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DryRun {
    /// Recipients, before those that are in twice are found: by id and by the same bare address, or in two groups.
    pub recipients: u64,
    /// Recipients whose channels were worked out; the counts below are of these.
    pub looked_at: u64,
    /// Messages that would go out, by channel (`namespace/name`): one to somebody who is in by id and by the same bare
    /// address, if the person is among those looked at.
    pub channels: BTreeMap<String, u64>,
    /// Messages that would not go out, by reason: `opted-out`, `address-gone`, `no-address`, `unknown-recipient`.
    pub suppressed: BTreeMap<String, u64>,
    /// Text message parts of the samples; absent if none is a text message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sms_segments: Option<usize>,
    /// It would be held: more recipients than the template allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<super::view::Held>,
    /// The class it would have.
    #[schema(schema_with = schema::priority)]
    pub priority: Priority,
    /// It would go straight on, without waiting for its turn.
    pub direct: bool,
    /// The first messages, rendered: those to people of the directory only for a caller who may read about them.
    pub samples: Vec<Sample>,
    /// Messages of the first that are not shown for that reason.
    #[serde(default, skip_serializing_if = "super::view::is_none_yet")]
    pub withheld: u64,
}

/// A message that would be sent.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    /// Its recipient's id; absent for a bare address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
    /// Its channel, `namespace/name`.
    pub channel: String,
    /// What it would say.
    pub content: Block,
}

/// Works out what a request would come to. Reads the directory, changes nothing.
///
/// Who may send to people may know how many they are, but neither who is in a group nor what the directory has of them.
pub(super) async fn run(api: &Api, caller: &Caller, prepared: Prepared) -> Result<DryRun, Problem> {
    let declared = api.catalog.current();
    let name = format!(
        "{}/{}",
        prepared.request.namespace, prepared.request.template
    );
    let Some(template) = declared.templates.get(name.as_str()) else {
        return Err(Problem::not_found("such template any more"));
    };
    let spec = &template.resource.spec;
    let request = &prepared.request;
    let mut walk = Walk {
        api,
        request,
        routes: Arc::new(Routes::new(request, spec, &declared)),
        seen: HashSet::new(),
        reached: HashSet::new(),
        answer: DryRun {
            priority: request.priority,
            direct: prepared.path == herald_crds::names::Path::Direct,
            ..DryRun::default()
        },
        firsts: Vec::new(),
    };
    for source in sources(request, &groups(&prepared)?) {
        walk.source(&source).await?;
    }
    let Walk {
        mut answer, firsts, ..
    } = walk;
    let allowed = spec
        .max_recipients()
        .max(request.confirm_recipients.unwrap_or(0));
    answer.held = (answer.recipients > allowed).then_some(super::view::Held {
        recipients: answer.recipients,
        allowed,
    });
    let parameters: serde_json::Value =
        serde_json::from_str(request.parameters.get()).unwrap_or_default();
    let parameters = template.compiled.prepare(parameters);
    let tells_of_people = firsts.iter().any(|(_, _, person)| person.id.is_some());
    let may_tell = !tells_of_people || caller.may(&permissions::SAMPLE_FOR.right, "").await?;
    for (channel, medium, person) in firsts {
        let content = preview::block(
            &template.compiled,
            medium,
            &person.locale,
            &parameters,
            &person,
        );
        if let Block::Sms { segments, .. } = &content {
            *answer.sms_segments.get_or_insert(0) += segments;
        }
        if person.id.is_some() && !may_tell {
            answer.withheld += 1;
            continue;
        }
        answer.samples.push(Sample {
            recipient: person.id.as_deref().map(str::to_owned),
            channel,
            content,
        });
    }
    Ok(answer)
}

/// The groups that the request carries.
fn groups(prepared: &Prepared) -> Result<Groups, Problem> {
    let Some(hash) = &prepared.request.groups else {
        return Ok(Groups::new());
    };
    let packed = prepared.definitions.iter().find(|(name, _)| name == hash);
    packed
        .and_then(|(_, packed)| STANDARD.decode(&**packed).ok())
        .and_then(|zipped| zstd::decode_all(&*zipped).ok())
        .and_then(|json| serde_json::from_slice(&json).ok())
        .ok_or_else(|| Problem::new(Kind::Internal, "the groups could not be read back"))
}

struct Walk<'a> {
    api: &'a Api,
    request: &'a Request,
    routes: Arc<Routes>,
    /// People who were met already.
    seen: HashSet<Arc<str>>,
    /// Where they have a row: channel and address.
    reached: HashSet<(FullName, Arc<str>)>,
    answer: DryRun,
    /// The first messages: channel, medium, for whom.
    firsts: Vec<(String, Medium, Arc<RenderedFor>)>,
}

impl Walk<'_> {
    async fn source(&mut self, source: &Source) -> Result<(), Problem> {
        let directory = match source {
            Source::Addresses(addresses) => {
                self.answer.recipients += addresses.len() as u64;
                let people: Vec<_> = addresses
                    .iter()
                    .map(|address| (Arc::from(""), Some(address), None))
                    .collect();
                return self.people(&people).await;
            }
            Source::People(ids) => {
                self.answer.recipients += ids.len() as u64;
                for ids in ids.chunks(STEP) {
                    self.directory(&Directory::Ids(ids), None).await?;
                }
                return Ok(());
            }
            Source::Managed(group) => Directory::Managed(group),
            Source::Labels(labels) => Directory::Labels(labels),
        };
        let at = self.request.send_at.unwrap_or(self.request.accepted_at);
        let namespace = &self.request.namespace;
        self.answer.recipients += self
            .api
            .store
            .count_members(namespace, &directory, at)
            .await?;
        let mut after = None;
        while (self.answer.looked_at as usize) < LOOKED_AT {
            let Some(last) = self.directory(&directory, after.as_ref()).await? else {
                break;
            };
            after = Some(last);
        }
        Ok(())
    }

    /// Looks at one step of a directory; answers the last one of it, if there may be more.
    async fn directory(
        &mut self,
        directory: &Directory<'_>,
        after: Option<&(u32, String)>,
    ) -> Result<Option<(u32, String)>, Problem> {
        let at = self.request.send_at.unwrap_or(self.request.accepted_at);
        let namespace = &self.request.namespace;
        let store = &self.api.store;
        let members = store.members(namespace, directory, at, after, STEP).await?;
        let people: Vec<_> = members
            .iter()
            .filter(|member| self.seen.insert(Arc::clone(&member.id)))
            .map(|member| {
                let recipient = member.recipient.as_deref();
                let addresses = recipient.map(|recipient| &recipient.addresses);
                (Arc::clone(&member.id), addresses, recipient)
            })
            .collect();
        self.people(&people).await?;
        let last = members.last().filter(|_| members.len() == STEP);
        Ok(last.map(|member| (crate::id::order(&member.id), member.id.to_string())))
    }

    async fn people(
        &mut self,
        people: &[(Arc<str>, Option<&Address>, Option<&Recipient>)],
    ) -> Result<(), Problem> {
        self.answer.looked_at += people.len() as u64;
        let routes = Arc::clone(&self.routes);
        let endpoints: Vec<(&str, &str)> = people
            .iter()
            .filter_map(|(_, address, _)| *address)
            .flat_map(|address| routes.endpoints(address))
            .map(|(_, medium, endpoint)| (medium.as_str(), endpoint))
            .collect();
        let namespace = &self.request.namespace;
        let answers = self.api.store.suppressed(namespace, &endpoints).await?;
        let suppressed: HashMap<(&str, &str), Suppression> = endpoints
            .into_iter()
            .zip(answers)
            .filter_map(|(endpoint, reason)| Some((endpoint, reason?)))
            .collect();
        for (id, address, recipient) in people {
            let locale = match recipient {
                Some(recipient) => recipient.locale.as_deref(),
                None => address.and_then(|address| address.locale.as_deref()),
            }
            .unwrap_or("");
            let person = Person {
                id,
                address: *address,
                locale,
            };
            let mut rows = Vec::new();
            let suppressed = |medium: Medium, endpoint: &str| {
                suppressed.get(&(medium.as_str(), endpoint)).copied()
            };
            let now = self.request.accepted_at;
            routes.rows(&self.request.id, &person, now, suppressed, &mut rows);
            for row in rows {
                let place = (Arc::clone(&row.channel), Arc::clone(&row.endpoint));
                if !row.recipient.is_empty() {
                    self.reached.insert(place);
                } else if self.reached.contains(&place) {
                    // Bare addresses come last: whose this is, gets one message.
                    continue;
                }
                self.count(&row, *recipient);
            }
        }
        Ok(())
    }

    fn count(&mut self, row: &NewDelivery, recipient: Option<&Recipient>) {
        if let Some(reason) = row.suppressed {
            let reason: &'static str = Suppression::into(reason);
            *self.answer.suppressed.entry(reason.to_owned()).or_default() += 1;
            return;
        }
        *self
            .answer
            .channels
            .entry(row.channel.to_string())
            .or_default() += 1;
        if self.firsts.len() < SAMPLES
            && let Some(channel) = self.api.catalog.current().channels.get(&row.channel)
        {
            let person = RenderedFor {
                id: (!row.recipient.is_empty()).then(|| Arc::clone(&row.recipient)),
                locale: Arc::clone(&row.locale),
                labels: recipient.map(|r| r.labels.clone()).unwrap_or_default(),
            };
            let medium = channel.spec.medium;
            self.firsts
                .push((row.channel.to_string(), medium, Arc::new(person)));
        }
    }
}
