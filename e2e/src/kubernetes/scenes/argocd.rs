//! Herald and a team's resources from Git, by the Applications and health checks of `docs/gitops/argocd`.
//!
//! Argo CD's view is what its Application says: [`Application`].

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use herald_crds::Kind;
use herald_dispatcher::catalog::yaml;
use serde_json::Value;

use super::super::crds::samples_in;
use super::super::herald::{LOOK, chart, is};
use super::repository::{Repository, run};
use super::{Set, docs};

/// The namespace of Applications.
const ARGOCD: &str = "argocd";

/// The one that installs Herald, and the one of a team.
const HERALD: &str = "herald";
const SHOP: &str = "shop-notifications";

/// The folder of the team's repository that its Application names.
const FOLDER: &str = "notifications";

/// How long a change may take to be what Git says, on a busy machine.
const PATIENCE: Duration = Duration::from_mins(5);

/// How often all is compared with Git anew.
const REFRESHES: usize = 10;

/// What undoes an edit, and what is edited.
const TEMPLATE: &str = "notifications/template-order-shipped.yaml";

/// Plays it.
pub async fn play(set: &mut Set) -> anyhow::Result<String> {
    set.load()?;
    let begin = Instant::now();
    let shop = set.declare()?;
    set.until(SHOP, "Healthy").await?;
    set.until(HERALD, "Healthy").await?;
    let up = begin.elapsed().as_secs_f64();
    let waves = set.definitions_came_first()?;
    let count = set.everything_is_healthy()?;
    let message = set.broken_and_mended(&shop).await?;
    set.suspended(&shop).await?;
    let compared = set.without_drift().await?;
    set.healed().await?;
    set.pruned(&shop).await?;
    Ok(format!(
        "Herald and {count} samples Synced and Healthy after {up:.0} s, {waves}; a template that does not render made its \
         Application Degraded ({message}), and Healthy again when mended; a Channel and a Schedule Suspended; {REFRESHES} \
         refreshes of {compared} objects without drift; a live edit, a scaled operator and a deleted group were healed, a \
         removed Schedule was pruned"
    ))
}

/// What Argo CD says of an Application.
struct Application(Value);

impl Application {
    fn is(&self, health: &str) -> bool {
        let status = &self.0["status"];
        status["sync"]["status"] == "Synced"
            && status["health"]["status"] == health
            // Nothing is asked of it, and nothing under way.
            && self.0["operation"].is_null()
            && status["operationState"]["phase"] == "Succeeded"
            && self.0["metadata"]["annotations"]["argocd.argoproj.io/refresh"].is_null()
    }

    /// What it consists of, each as `GROUP/KIND/NAME`, with what is said of it.
    fn resources(&self) -> BTreeMap<String, &Value> {
        let resources = self.0["status"]["resources"].as_array();
        let resources = resources.into_iter().flatten().map(|resource| {
            let part = |field: &str| resource[field].as_str().unwrap_or_default();
            let name = format!("{}/{}/{}", part("group"), part("kind"), part("name"));
            (name, resource)
        });
        resources.collect()
    }

    /// The health of one of Herald's resources.
    fn health(&self, kind: Kind, name: &str) -> anyhow::Result<&Value> {
        let name = format!("herald.dev/{}/{name}", kind.as_str());
        let resources = self.resources();
        let resource = resources.get(&name);
        Ok(&resource.with_context(|| format!("{name} is not of it"))?["health"])
    }

    /// When it was synced last, and how often.
    fn syncs(&self) -> (String, usize) {
        let status = &self.0["status"];
        let last = status["operationState"]["finishedAt"].to_string();
        (last, status["history"].as_array().map_or(0, Vec::len))
    }
}

impl Set {
    /// Makes the repositories, and hands Argo CD what the documentation has it know. Answers the team's.
    fn declare(&self) -> anyhow::Result<Repository> {
        let kubernetes = self.kubernetes()?;
        let settings = docs()
            .join("gitops/argocd/argocd-cm.yaml")
            .display()
            .to_string();
        // As its first lines say.
        let apply = ["apply", "--server-side", "--field-manager", "herald"];
        let where_to = ["--namespace", ARGOCD, "-f", &settings];
        kubernetes.kubectl(&[&where_to[..2], &apply[..], &where_to[2..]].concat())?;
        let herald = Repository::new(self.folder.join("herald.git"))?;
        herald.copy(&chart(), "charts")?;
        herald.commit("Herald")?;
        herald.tag("v0.1.0")?;
        let shop = Repository::new(self.folder.join("shop.git"))?;
        for (file, _) in samples_in("quickstart")? {
            shop.copy(file.as_ref(), FOLDER)?;
        }
        // One pod reads credentials in its own namespace alone.
        let named = "      credentialsRef: {name: warehouse-signing}\n";
        shop.edit("notifications/channel-hooks.yaml", named, "")?;
        shop.commit("What we say to whom")?;

        let mut install = application("herald.yaml")?;
        install["spec"]["source"]["repoURL"] = herald.url().into();
        looking_around(&mut install)?;
        let mut team = application("shop.yaml")?;
        team["spec"]["source"]["repoURL"] = shop.url().into();
        // Where the team is first: in either order all ends well.
        kubernetes.apply(&team.to_string())?;
        kubernetes.apply(&install.to_string())?;
        for namespace in ["namespace/herald", "namespace/shop"] {
            kubernetes.kubectl(&["wait", "--for=create", namespace, "--timeout=120s"])?;
        }
        // The Secret, which is not in Git.
        let links = "kubectl --namespace herald create secret generic herald-links \
                     --from-file=key=<(head --bytes 32 /dev/urandom)";
        let page = fs::read_to_string(docs().join("gitops/README.md"))?;
        ensure!(
            page.contains(links),
            "docs/gitops/README.md does not say: {links}"
        );
        run(kubernetes.user("bash")?.args(["-ec", links]))?;
        Ok(shop)
    }

    fn application(&self, name: &str) -> anyhow::Result<Application> {
        self.get(ARGOCD, &format!("application/{name}"))
            .map(Application)
    }

    /// Waits until an Application is as Git has it, and its health is this. An error says what it is instead.
    async fn until(&self, name: &str, health: &str) -> anyhow::Result<Application> {
        let begin = Instant::now();
        loop {
            let application = self.application(name)?;
            if application.is(health) {
                return Ok(application);
            }
            if begin.elapsed() > PATIENCE {
                let status = &application.0["status"];
                bail!(
                    "{name} is not {health}: {} {} {}; {}; {}",
                    status["sync"]["status"],
                    status["health"],
                    status["conditions"],
                    status["operationState"]["message"],
                    status["resources"]
                );
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Has Argo CD compare an Application: with what it knows of Git (`normal`: its newest commit), or rendered anew
    /// (`hard`).
    fn refresh(&self, name: &str, how: &str) -> anyhow::Result<()> {
        let annotation = format!("argocd.argoproj.io/refresh={how}");
        let name = format!("application/{name}");
        let annotate = ["annotate", &name, &annotation, "--overwrite"];
        let kubernetes = self.kubernetes()?;
        kubernetes.kubectl(&[&annotate[..], &["--namespace", ARGOCD]].concat())?;
        Ok(())
    }

    /// Commits, and waits until the team's Application is as it was committed, and of this health.
    async fn pushed(
        &self,
        shop: &Repository,
        why: &str,
        health: &str,
    ) -> anyhow::Result<Application> {
        shop.commit(why)?;
        let revision = shop.revision()?;
        self.refresh(SHOP, "normal")?;
        let begin = Instant::now();
        loop {
            let application = self
                .until(SHOP, health)
                .await
                .with_context(|| why.to_owned())?;
            if application.0["status"]["sync"]["revision"] == *revision {
                return Ok(application);
            }
            ensure!(begin.elapsed() < PATIENCE, "{why}: the commit is not seen");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Checks that the definitions were there before anything else of the chart's.
    fn definitions_came_first(&self) -> anyhow::Result<String> {
        let mut definitions = Vec::new();
        let mut others = Vec::new();
        let application = self.application(HERALD)?;
        for (name, resource) in application.resources() {
            let found = self.found(resource)?;
            let created = found["metadata"]["creationTimestamp"].as_str();
            let created = created
                .with_context(|| format!("{name} has no age"))?
                .to_owned();
            if resource["kind"] == "CustomResourceDefinition" {
                definitions.push(created);
            } else {
                others.push(created);
            }
        }
        // In RFC 3339 and UTC, text is ordered as time is.
        let last = definitions
            .iter()
            .max()
            .context("there are no definitions")?;
        let first = others.iter().min().context("there is nothing else")?;
        ensure!(definitions.len() == 4 && last < first, "{last}, {first}");
        Ok(format!(
            "the definitions a wave before {} others",
            others.len()
        ))
    }

    /// The object that an Application's resource is.
    fn found(&self, resource: &Value) -> anyhow::Result<Value> {
        let part = |field: &str| resource[field].as_str().unwrap_or_default();
        let what = if part("group").is_empty() {
            format!("{}/{}", part("kind"), part("name"))
        } else {
            format!(
                "{}.{}.{}/{}",
                part("kind"),
                part("version"),
                part("group"),
                part("name")
            )
        };
        self.get(part("namespace"), &what)
    }

    /// Checks that every sample is Healthy in the operator's words. Answers how many there are.
    fn everything_is_healthy(&self) -> anyhow::Result<usize> {
        let application = self.application(SHOP)?;
        let resources = application.resources();
        let mut kinds = BTreeMap::new();
        for (name, resource) in &resources {
            let health = &resource["health"];
            ensure!(health["status"] == "Healthy", "{name}: {health}");
            let found = self.found(resource)?;
            ensure!(is(&found, "Ready", "True"), "{name}: {}", found["status"]);
            *kinds.entry(resource["kind"].to_string()).or_insert(0) += 1;
        }
        ensure!(kinds.len() == Kind::ALL.len(), "{kinds:?}");
        Ok(resources.len())
    }

    /// A template that does not render is Degraded with what the operator says of it, and its Application with it.
    async fn broken_and_mended(&self, shop: &Repository) -> anyhow::Result<String> {
        let words = (
            "Your order {{ order.id }} is on its way",
            "Your order {{ order.ident }} is on its way",
        );
        shop.edit(TEMPLATE, words.0, words.1)?;
        let application = self.pushed(shop, "Break a template", "Degraded").await?;
        let health = application.health(Kind::NotificationTemplate, "order-shipped")?;
        ensure!(health["status"] == "Degraded", "it is {health}");
        let message = health["message"].as_str().unwrap_or_default().to_owned();
        let found = self.get("shop", "notificationtemplate/order-shipped")?;
        let conditions = found["status"]["conditions"].as_array();
        let said = conditions
            .into_iter()
            .flatten()
            .any(|condition| condition["type"] == "Stalled" && condition["message"] == *message);
        ensure!(
            said && message.contains("ident"),
            "the operator says otherwise: {message}"
        );
        shop.edit(TEMPLATE, words.1, words.0)?;
        self.pushed(shop, "Mend it", "Healthy").await?;
        Ok(message)
    }

    /// What is suspended is Suspended, and then not any more.
    async fn suspended(&self, shop: &Repository) -> anyhow::Result<()> {
        let all = [
            (
                "notifications/channel-mail.yaml",
                "  medium: email\n",
                Kind::Channel,
                "mail",
            ),
            (
                "notifications/schedule-weekly-digest.yaml",
                "  priority: low\n",
                Kind::Schedule,
                "weekly-digest",
            ),
        ];
        for (file, line, ..) in all {
            shop.edit(file, line, &format!("{line}  suspend: true\n"))?;
        }
        let application = self.pushed(shop, "Pause", "Suspended").await?;
        for (_, _, kind, name) in all {
            let health = application.health(kind, name)?;
            ensure!(health["status"] == "Suspended", "{name} is {health}");
        }
        for (file, line, ..) in all {
            shop.edit(file, &format!("{line}  suspend: true\n"), line)?;
        }
        self.pushed(shop, "Go on", "Healthy").await?;
        Ok(())
    }

    /// Compares everything with Git again and again: nothing is found different, nothing synced, nothing written.
    /// Answers how many objects were compared.
    async fn without_drift(&self) -> anyhow::Result<usize> {
        let before = self.as_they_are()?;
        for _ in 0..REFRESHES {
            for name in [HERALD, SHOP] {
                self.refresh(name, "hard")?;
            }
            for name in [HERALD, SHOP] {
                let application = self.until(name, "Healthy").await?;
                let before = &before.syncs[name];
                ensure!(application.syncs() == *before, "{name} was synced again");
            }
        }
        let after = self.as_they_are()?;
        for (name, version) in &before.versions {
            let now = after.versions.get(name);
            ensure!(now == Some(version), "{name} was {version}, and is {now:?}");
        }
        Ok(before.versions.len())
    }

    fn as_they_are(&self) -> anyhow::Result<AsTheyAre> {
        let mut all = AsTheyAre::default();
        for name in [HERALD, SHOP] {
            let application = self.application(name)?;
            all.syncs.insert(name, application.syncs());
            for (name, resource) in application.resources() {
                let metadata = &self.found(resource)?["metadata"];
                // What has no generation is written by nobody but Argo CD.
                let version = match &metadata["generation"] {
                    Value::Null => &metadata["resourceVersion"],
                    generation => generation,
                };
                all.versions
                    .insert(name, format!("{} of {}", version, metadata["uid"]));
            }
        }
        Ok(all)
    }

    /// What somebody changes in the cluster becomes what Git says.
    async fn healed(&self) -> anyhow::Result<()> {
        let kubernetes = self.kubernetes()?;
        let patch = r#"{"spec": {"description": "edited by hand"}}"#;
        let edit = [
            "patch",
            "channel",
            "mail",
            "--namespace",
            "shop",
            "--type",
            "merge",
        ];
        kubernetes.kubectl(&[&edit[..], &["--patch", patch]].concat())?;
        let scale = ["scale", "deployment/herald-operator", "--replicas", "0"];
        kubernetes.kubectl(&[&scale[..], &["--namespace", "herald"]].concat())?;
        kubernetes.kubectl(&["delete", "recipientgroup", "board", "--namespace", "shop"])?;
        let begin = Instant::now();
        loop {
            let channel = self.get("shop", "channel/mail")?;
            let operator = self.get("herald", "deployment/herald-operator")?;
            let group = self.get("shop", "recipientgroup/board");
            if channel["spec"]["description"] == "Mail to customers and staff"
                && operator["spec"]["replicas"] == 1
                && group.is_ok()
            {
                break;
            }
            ensure!(
                begin.elapsed() < PATIENCE,
                "not healed: {} {}",
                channel["spec"],
                operator["spec"]["replicas"]
            );
            tokio::time::sleep(LOOK).await;
        }
        for name in [HERALD, SHOP] {
            self.until(name, "Healthy").await?;
        }
        Ok(())
    }

    /// What is removed from Git is removed from the cluster.
    async fn pruned(&self, shop: &Repository) -> anyhow::Result<()> {
        fs::remove_file(shop.path("notifications/schedule-weekly-digest.yaml"))?;
        let application = self.pushed(shop, "No digest any more", "Healthy").await?;
        ensure!(
            application.health(Kind::Schedule, "weekly-digest").is_err(),
            "it is still of it"
        );
        let left = [
            "get",
            "schedules",
            "--namespace",
            "shop",
            "--output",
            "name",
        ];
        let left = self.kubernetes()?.kubectl(&left)?;
        ensure!(left.is_empty(), "left: {left}");
        Ok(())
    }
}

/// How often Applications were synced, and what became of each of their objects.
#[derive(Default)]
struct AsTheyAre {
    syncs: BTreeMap<&'static str, (String, usize)>,
    versions: BTreeMap<String, String>,
}

/// An Application as the documentation has it.
fn application(file: &str) -> anyhow::Result<Value> {
    let path = docs().join("gitops/argocd").join(file);
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut documents = yaml::read(&text).with_context(|| format!("cannot read {file}"))?;
    ensure!(documents.len() == 1, "{file} is not one Application");
    Ok(documents.remove(0).value)
}

/// Has the chart installed as for looking around: there is neither a broker nor a database. The rest stays as it is.
fn looking_around(install: &mut Value) -> anyhow::Result<()> {
    let path = chart().join("values-dev.yaml");
    let dev = yaml::read(&fs::read(&path)?).context("cannot read the values")?;
    let values = install.pointer_mut("/spec/source/helm/valuesObject");
    let values = values.and_then(Value::as_object_mut);
    let values = values.context("it has no values")?;
    for given in ["image", "pulsar", "postgresql"] {
        values
            .remove(given)
            .with_context(|| format!("it has no {given}"))?;
    }
    for (name, value) in dev
        .iter()
        .filter_map(|document| document.value.as_object())
        .flatten()
    {
        values.entry(name).or_insert_with(|| value.clone());
    }
    Ok(())
}
