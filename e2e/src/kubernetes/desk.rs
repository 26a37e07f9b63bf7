//! Who goes on sending while everything is upset: one team for all upheavals, and Herald's pods, which they end.

use std::time::Instant;

use anyhow::{Context as _, bail};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::Stage;
use super::herald::{LOOK, NAMESPACE, PATIENCE, Team};
use crate::server::Api;

/// The desk's namespace.
pub const NAME: &str = "desk";

/// Its Channel.
pub const CHANNEL: &str = "mail";

/// Its templates: what goes with the database, and what goes without.
pub const TEMPLATES: [&str; 2] = ["note", "code"];

/// A namespace with a Channel that sends mail and two templates, and a service account that sends.
#[derive(Debug, Clone)]
pub struct Desk {
    /// The namespace.
    pub namespace: String,
    /// The API, as the service account.
    pub api: Api,
}

/// One of Herald's pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: String,
    /// What its container is called on the node: another one after each start.
    pub container: String,
    /// What it runs.
    pub image: String,
    ready: bool,
}

impl Pod {
    /// What the API server says of one. `None`: it runs nothing yet, or is on its way out.
    fn read(pod: &Value) -> Option<Self> {
        let status = &pod["status"]["containerStatuses"][0];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            return None;
        }
        Some(Self {
            name: text(&pod["metadata"]["name"])?,
            address: text(&pod["status"]["podIP"])?,
            container: text(&status["containerID"])?,
            image: text(&pod["spec"]["containers"][0]["image"])?,
            ready: status["ready"] == true,
        })
    }
}

/// Which of Herald's pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Of the release.
    Operator,
    /// Of the release.
    Gateway,
    /// Those of the desk's Channel.
    Deliver,
}

impl Who {
    /// Where they are, and how many the desk is served by.
    fn place(self) -> (&'static str, &'static str, usize) {
        match self {
            Self::Operator => (NAMESPACE, "app.kubernetes.io/component=operator", 2),
            Self::Gateway => (NAMESPACE, "app.kubernetes.io/component=gateway", 2),
            Self::Deliver => (NAME, "herald.dev/channel=mail", 1),
        }
    }
}

impl Stage {
    /// The desk. What is there of it already stays.
    pub async fn desk(&self) -> anyhow::Result<Desk> {
        let kubernetes = self.kubernetes()?;
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAME}});
        kubernetes.apply(&namespace.to_string())?;
        let team = self.team(NAME)?;
        let [note, code] = TEMPLATES;
        let mut code = team.template(code, "a code", &[CHANNEL]);
        // Sent on without the database.
        code["spec"]["mandatory"] = json!(true);
        code["spec"]["priority"] = json!("critical");
        let note = team.template(note, "a note", &[CHANNEL]);
        team.apply(&[team.mail(CHANNEL), code, note])?;
        for what in [
            "channel/mail",
            "notificationtemplate/code",
            "notificationtemplate/note",
        ] {
            team.ready(what).await?;
        }
        self.running(Who::Deliver, &[]).await?;
        Ok(Desk {
            namespace: NAME.to_owned(),
            api: team.api,
        })
    }

    /// The desk's team.
    pub fn desk_team<'a>(&'a self, desk: &Desk) -> anyhow::Result<Team<'a>> {
        Ok(Team::of(
            self.kubernetes()?,
            self.client.clone(),
            &desk.namespace,
            desk.api.clone(),
        ))
    }

    /// The pods of a kind that run something.
    pub fn pods(&self, who: Who) -> anyhow::Result<Vec<Pod>> {
        let (namespace, label, _) = who.place();
        let asked = ["get", "pods", "--namespace", namespace, "--selector", label];
        let listed = self
            .kubernetes()?
            .kubectl(&[&asked[..], &["--output", "json"]].concat())?;
        let listed: Value = serde_json::from_str(&listed).context("the pods are no JSON")?;
        let pods = listed["items"].as_array().context("the pods are no list")?;
        Ok(pods.iter().filter_map(Pod::read).collect())
    }

    /// Waits until as many pods of a kind are ready as there should be, none of them in one of these containers.
    pub async fn running(&self, who: Who, instead_of: &[Pod]) -> anyhow::Result<Vec<Pod>> {
        let begin = Instant::now();
        let (.., count) = who.place();
        loop {
            let pods = self.pods(who);
            if let Ok(pods) = &pods {
                let is_new =
                    |pod: &Pod| instead_of.iter().all(|old| old.container != pod.container);
                let there = pods.iter().filter(|pod| pod.ready && is_new(pod)).count();
                if there == count && pods.len() == count {
                    return Ok(pods.clone());
                }
            }
            if begin.elapsed() > PATIENCE {
                bail!("{who:?}: not as many pods as there should be: {:?}", pods?);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// SIGKILL for what a pod runs, and nobody waits for the pod: there is another at once, however often this happens.
    pub fn kill(&self, who: Who, pod: &Pod) -> anyhow::Result<()> {
        let kubernetes = self.kubernetes()?;
        kubernetes.signal_container(&pod.container, Signal::KILL)?;
        let (namespace, ..) = who.place();
        let deleted = ["delete", "pod", &pod.name, "--namespace", namespace];
        let at_once = ["--force", "--grace-period=0", "--wait=false"];
        kubernetes.kubectl(&[&deleted[..], &at_once].concat())?;
        Ok(())
    }
}
