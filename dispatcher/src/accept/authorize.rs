//! Whether a sender may ask for what the members of its request say.

use std::collections::BTreeSet;

use super::check::MOST_CHANNELS;
use super::{Refusal, SendRequest};
use crate::access::{Right, Sender, rights};
use crate::catalog::Snapshot;

/// Refuses what the request's members need beyond the right to send, and `sender` does not have.
///
/// Asks only about what there is: names that lead nowhere are refused by the check that follows, and cost whoever decides
/// nothing.
pub(super) async fn members(
    snapshot: &Snapshot,
    sender: &Sender,
    namespace: &str,
    asked: &SendRequest,
) -> Result<(), Refusal> {
    let full = format!("{namespace}/{}", asked.template);
    let Some(template) = snapshot.templates.get(full.as_str()) else {
        return Ok(());
    };
    let need = async |right: &Right,
                      namespace: &str,
                      name: &str,
                      because: &(dyn Fn() -> String + Sync)| {
        let asked = sender.require(right, namespace, name).await;
        asked.map_err(|denied| Refusal::Authorize {
            denied,
            because: because(),
        })
    };
    let right = &rights::USE_TEMPLATE;
    need(right, namespace, &asked.template, &|| {
        "/template".to_owned()
    })
    .await?;

    // Who steps back takes nothing from anybody; what is planned does by default (`Schedule.spec.priority`).
    let usual = template.resource.spec.priority();
    if let Some(class) = asked.priority.filter(|class| class.index() < usual.index()) {
        let right = &rights::use_priority(class);
        need(right, namespace, class.as_str(), &|| "/priority".to_owned()).await?;
    }
    for (at, given) in asked.channels.iter().take(MOST_CHANNELS).enumerate() {
        let (home, name) = given.split_once('/').unwrap_or((namespace, given));
        if (snapshot.channels).contains_key(format!("{home}/{name}").as_str()) {
            need(&rights::USE_CHANNEL, home, name, &|| {
                format!("/channels/{at}")
            })
            .await?;
        }
    }
    let mut seen = BTreeSet::new();
    let mut to_address = None;
    for (at, reference) in asked.recipients.iter().enumerate() {
        if reference.address.is_some() {
            to_address.get_or_insert(at);
        }
        let Some(group) = reference.group.as_deref() else {
            continue;
        };
        let is_new = seen.insert(group);
        if is_new && (snapshot.groups).contains_key(format!("{namespace}/{group}").as_str()) {
            let because = || format!("/recipients/{at}/group");
            need(&rights::USE_GROUP, namespace, group, &because).await?;
        }
    }
    if let Some(at) = to_address {
        let because = || format!("/recipients/{at}/address");
        need(&rights::USE_ADDRESSES, namespace, "", &because).await?;
    }
    Ok(())
}
