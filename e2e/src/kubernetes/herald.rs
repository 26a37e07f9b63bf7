//! Herald in the cluster, put there by its chart, and a team that uses it: a namespace, and somebody who sends.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use herald_crds::Kind;
use herald_e2e::environment::kubernetes::image::Image;
use herald_e2e::environment::{Environment, Kubernetes};
use herald_e2e::process;
use kube::Client;
use kube::api::GetParams;
use kube::core::Request;
use reqwest::{RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

use super::quotas;
use crate::server::Api;

/// The release's namespace, and its name.
pub const NAMESPACE: &str = "herald-system";
/// The release.
pub const RELEASE: &str = "herald";

/// What pods call the image, without a tag.
pub const IMAGE: &str = "herald.test/herald";
/// The programs that were built beside this one.
pub const TAG: &str = "dev";

/// The tenant in Pulsar, which the operator may administer, and nothing else.
pub const TENANT: &str = "herald";

/// Whom programs trust with TLS.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// How long anything may take to become what it should be, on a busy machine.
pub const PATIENCE: Duration = Duration::from_mins(4);

/// How often it is looked whether it has.
pub const LOOK: Duration = Duration::from_millis(200);

/// The chart as it was in version 0.1.0: what upgrades begin with.
pub fn frozen_chart() -> PathBuf {
    process::repository().join("e2e/fixtures/herald-0.1.0.tgz")
}

/// The tag of the image that the frozen chart installs unless it is told otherwise.
pub const FROZEN_TAG: &str = "0.1.0";

/// The chart.
pub fn chart() -> PathBuf {
    process::repository().join("charts/herald")
}

/// Makes an image of the programs that were built beside this one, and makes it known to the cluster by this tag.
pub fn load(kubernetes: &Kubernetes, folder: &Path, tag: &str) -> anyhow::Result<()> {
    load_as(kubernetes, folder, &format!("{IMAGE}:{tag}"))
}

/// The same by this name, with a registry's and a tag.
pub fn load_as(kubernetes: &Kubernetes, folder: &Path, name: &str) -> anyhow::Result<()> {
    let archive = folder.join(format!("{}.tar", name.replace(['/', ':'], "-")));
    let mut files = vec![(PathBuf::from(AUTHORITIES), AUTHORITIES)];
    files.retain(|(file, _)| file.exists());
    let image = Image {
        name,
        entrypoint: "/usr/bin/herald",
        programs: &[
            (process::herald()?, "/usr/bin/herald"),
            (process::dispatcher()?, "/usr/bin/herald-dispatcher"),
            (process::operator()?, "/usr/bin/herald-operator"),
        ],
        files: &files,
    };
    image.write(&archive)?;
    kubernetes.import(&archive)?;
    fs::remove_file(&archive).context("cannot remove the image's archive")
}

/// What `helm` says.
pub fn helm(kubernetes: &Kubernetes, arguments: &[&str]) -> anyhow::Result<String> {
    helm_of(kubernetes, "helm", arguments)
}

/// What `helm`, of Helm 3, or `helm4` says.
pub fn helm_of(
    kubernetes: &Kubernetes,
    program: &str,
    arguments: &[&str],
) -> anyhow::Result<String> {
    let output = kubernetes
        .program(program)
        .args(arguments)
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Puts Herald over Pulsar and PostgreSQL into the cluster. Who administers Pulsar made the tenant; who administers the
/// cluster, the Secrets with tokens and addresses.
pub async fn install(environment: &Environment, folder: &Path) -> anyhow::Result<()> {
    let kubernetes = environment.kubernetes()?;
    let pulsar = environment.pulsar()?;
    load(kubernetes, folder, TAG)?;
    let clusters = pulsar.admin()?.clusters().await?;
    let tenant = reqwest::Client::new()
        .put(format!("{}/admin/v2/tenants/{TENANT}", pulsar.admin_url()))
        .bearer_auth(pulsar.admin_token())
        .json(&json!({"adminRoles": ["herald-operator"], "allowedClusters": clusters}));
    let answer = tenant.send().await.context("cannot make the tenant")?;
    ensure!(
        answer.status().is_success(),
        "the tenant: {}",
        answer.status()
    );

    let secret = |name: &str, key: &str, value: &str| {
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "stringData": {key: value},
        })
    };
    let database = "postgres://herald@postgres.neighbours:5432/herald";
    let operator = pulsar.token("herald-operator", None);
    let gateway = pulsar.token("herald-gateway", None);
    let documents = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {
            "name": NAMESPACE,
            "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
        }},
        secret("herald-pulsar-operator", "token", &operator),
        secret("herald-pulsar-gateway", "token", &gateway),
        secret("herald-postgresql", "url", database),
    ]});
    kubernetes.apply(&documents.to_string())?;
    let values = json!({
        "image": {"repository": IMAGE, "tag": TAG},
        "pulsar": {
            "url": "pulsar://pulsar.neighbours:6650",
            "adminUrl": "http://pulsar.neighbours:8080",
            "tenant": TENANT,
            "operatorToken": {"existingSecret": "herald-pulsar-operator"},
            "gatewayToken": {"existingSecret": "herald-pulsar-gateway"},
            "gatewayRole": "herald-gateway",
            "pods": {"auth": "serviceAccount"},
        },
        "postgresql": {"existingSecret": "herald-postgresql"},
        // The mail server is beside the cluster.
        "allowPrivateAddresses": true,
        "operator": {
            "replicas": 2,
            // Nobody waits for five minutes here.
            "extraEnv": [{"name": "HERALD_SCALE_DOWN_SECONDS", "value": "15"}],
        },
        "gateway": {"replicas": 2},
        "quotas": {"senderRate": quotas::SENDER_RATE},
    });
    let file = values_file(folder);
    fs::write(&file, values.to_string()).context("cannot write the values")?;
    release(kubernetes, folder, "install", &chart(), &[])
}

/// Installs or upgrades the release to a chart, with the values that it was installed with and these, and waits until
/// all of it is there.
pub fn release(
    kubernetes: &Kubernetes,
    folder: &Path,
    how: &str,
    chart: &Path,
    set: &[&str],
) -> anyhow::Result<()> {
    let chart = chart.display().to_string();
    let file = values_file(folder).display().to_string();
    let mut arguments = vec![
        how,
        RELEASE,
        &chart,
        "--namespace",
        NAMESPACE,
        "--values",
        &file,
    ];
    for value in set {
        arguments.extend(["--set", value]);
    }
    arguments.extend(["--wait", "--timeout", "4m"]);
    helm(kubernetes, &arguments).map(drop)
}

/// Takes Herald out of the cluster, by way of the hook that lets Channels go; that may take so long, as Helm writes it.
pub fn uninstall(kubernetes: &Kubernetes, patience: &str) -> anyhow::Result<()> {
    let release = ["uninstall", RELEASE, "--namespace", NAMESPACE];
    let patience = ["--wait", "--timeout", patience];
    helm(kubernetes, &[release.as_slice(), &patience].concat()).map(drop)
}

/// Where the values are that it was installed with.
pub fn values_file(folder: &Path) -> PathBuf {
    folder.join("values.json")
}

/// The gateways' API, through their Service.
pub fn gateways(kubernetes: &mut Kubernetes) -> anyhow::Result<Api> {
    api(kubernetes, NAMESPACE)
}

/// The API of a release in this namespace, through its Service.
pub fn api(kubernetes: &mut Kubernetes, namespace: &str) -> anyhow::Result<Api> {
    let service = ["get", "service", "herald-gateway", "--namespace", namespace];
    let address = "jsonpath={.spec.clusterIP}:{.spec.ports[0].port}";
    let address = kubernetes.kubectl(&[&service[..], &["--output", address]].concat())?;
    Api::new(kubernetes.reach(&address)?.port())
}

/// Who uses Herald: a namespace, and a service account in it that may send.
pub struct Team<'a> {
    kubernetes: &'a Kubernetes,
    /// Asks the API server again and again, for which `kubectl` would need a processor of its own.
    client: Client,
    /// The namespace.
    pub namespace: String,
    /// The API, as the service account.
    pub api: Api,
}

impl<'a> Team<'a> {
    /// In a namespace that is there: `sender`, who may send and see what became of it.
    pub fn new(
        kubernetes: &'a Kubernetes,
        client: Client,
        gateways: &Api,
        namespace: &str,
    ) -> anyhow::Result<Self> {
        let api = sender(
            kubernetes,
            gateways,
            namespace,
            "sender",
            &["herald-sender", "herald-support"],
        )?;
        Ok(Self::of(kubernetes, client, namespace, api))
    }

    /// Who is there already.
    pub fn of(kubernetes: &'a Kubernetes, client: Client, namespace: &str, api: Api) -> Self {
        Self {
            kubernetes,
            client,
            namespace: namespace.to_owned(),
            api,
        }
    }

    /// A path of the API in this namespace.
    pub fn path(&self, rest: &str) -> String {
        format!("/v1/namespaces/{}/{rest}", self.namespace)
    }

    /// What `kubectl` prints, of this namespace.
    pub fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let within = ["--namespace", &*self.namespace];
        self.kubernetes.kubectl(&[&within[..], arguments].concat())
    }

    /// Applies documents as they are: they name their namespace.
    pub fn apply(&self, documents: &[Value]) -> anyhow::Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": documents});
        self.kubernetes.apply(&list.to_string()).map(drop)
    }

    /// A resource of Herald's, in this namespace.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "it is made where it is handed over"
    )]
    pub fn resource(&self, kind: &str, name: &str, spec: Value) -> Value {
        json!({
            "apiVersion": "herald.dev/v1alpha1",
            "kind": kind,
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": spec,
        })
    }

    /// A Channel that sends mail to the server beside the cluster.
    pub fn mail(&self, name: &str) -> Value {
        let smtp = json!({
            "host": "mail.neighbours", "port": 2525, "tls": "None", "from": "desk@team.example",
            "allowPrivateAddresses": true,
        });
        let providers = json!([{"name": "sink", "smtp": smtp}]);
        let spec = json!({"medium": "email", "providers": providers});
        self.resource("Channel", name, spec)
    }

    /// A template that says `subject`, and goes by these channels.
    pub fn template(&self, name: &str, subject: &str, channels: &[&str]) -> Value {
        let channels: Vec<_> = channels.iter().map(|name| json!({"name": name})).collect();
        let spec = json!({
            "routing": {"channels": channels},
            "content": {"email": {"subject": subject, "text": "as the subject says"}},
        });
        self.resource("NotificationTemplate", name, spec)
    }

    /// What the API server has of something: `channel/mail`.
    pub fn get(&self, what: &str) -> anyhow::Result<Value> {
        let text = self.kubectl(&["get", what, "--output", "json"])?;
        serde_json::from_str(&text).with_context(|| format!("{what} is no JSON"))
    }

    /// Waits until a resource is what it should be by its latest generation. An error says what it is instead.
    pub async fn until(
        &self,
        what: &str,
        expected: &str,
        is_so: impl Fn(&Value) -> bool + Send,
    ) -> anyhow::Result<Value> {
        let begin = Instant::now();
        loop {
            let found = look(&self.client, &self.namespace, what).await;
            if let Ok(found) = &found
                && is_so(found)
            {
                return Ok(found.clone());
            }
            if begin.elapsed() > PATIENCE {
                bail!("{what} is not {expected}: {}", found?["status"]);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until a resource is Ready as it was declared last.
    pub async fn ready(&self, what: &str) -> anyhow::Result<Value> {
        self.until(what, "ready", |found| is(found, "Ready", "True"))
            .await
    }

    /// Waits until a resource is Stalled as it was declared last, and answers why.
    pub async fn stalled(&self, what: &str) -> anyhow::Result<String> {
        let found = self.until(what, "stalled", |found| is(found, "Stalled", "True"));
        let found = found.await?;
        let message = condition(&found, "Stalled").map(|condition| &condition["message"]);
        Ok(message
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned())
    }

    /// Sends, as clients do: again with the same key until it is accepted. Answers the notification's id.
    pub async fn send(&self, key: &str, request: &Value) -> anyhow::Result<String> {
        let path = format!("/v1/namespaces/{}/notifications", self.namespace);
        let begin = Instant::now();
        loop {
            let request = self
                .api
                .post(&path)
                .header("Idempotency-Key", key)
                .json(request);
            let problem = match request.send().await {
                Ok(answer) if answer.status().is_success() => {
                    let answer: Value = answer.json().await.context("no JSON was answered")?;
                    let id = answer["id"].as_str();
                    return Ok(id.context("the answer has no id")?.to_owned());
                }
                // What is declared may not be known to that gateway yet.
                Ok(answer) if begin.elapsed() > PATIENCE => {
                    let status = answer.status();
                    bail!("{status}: {}", answer.text().await.unwrap_or_default())
                }
                Ok(answer) => anyhow::anyhow!("{}", answer.status()),
                Err(error) => error.into(),
            };
            if begin.elapsed() > PATIENCE {
                return Err(problem.context("not accepted"));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What is known of a notification, once anything is: what was just accepted is not yet, for a moment.
    pub async fn notification(&self, id: &str) -> anyhow::Result<Value> {
        let path = format!("/v1/namespaces/{}/notifications/{id}", self.namespace);
        let begin = Instant::now();
        loop {
            match self.api.read(&path, &[]).await {
                Err(_) if begin.elapsed() < PATIENCE => tokio::time::sleep(LOOK).await,
                found => return found,
            }
        }
    }

    /// A notification's deliveries.
    pub async fn deliveries(&self, id: &str) -> anyhow::Result<Vec<Value>> {
        self.notification(id).await?;
        let path = format!(
            "/v1/namespaces/{}/notifications/{id}/deliveries",
            self.namespace
        );
        self.api.all(&path).await
    }

    /// Waits until all of a notification's deliveries have ended, and answers what is known of it.
    pub async fn ended(&self, id: &str) -> anyhow::Result<Value> {
        let path = format!("/v1/namespaces/{}/notifications/{id}", self.namespace);
        let begin = Instant::now();
        loop {
            let found = self.api.read::<Value>(&path, &[("wait", "10s")]).await;
            match found {
                Ok(found) if has_ended(&found) => return Ok(found),
                found if begin.elapsed() > PATIENCE => {
                    bail!("{id} has not ended: {}", found?)
                }
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    }
}

/// What the API server has of something in a namespace, by `kind/name`.
pub async fn look(client: &Client, namespace: &str, what: &str) -> anyhow::Result<Value> {
    let (kind, name) = what.split_once('/').context("it is not kind/name")?;
    let kind = kind.to_lowercase();
    let of_herald = Kind::ALL.into_iter().find(|known| {
        let singular = known.as_str().to_lowercase();
        kind == singular || kind == known.plural()
    });
    let path = match (of_herald, &*kind) {
        (Some(known), _) => format!(
            "apis/herald.dev/v1alpha1/namespaces/{namespace}/{}",
            known.plural()
        ),
        (None, "deployment") => format!("apis/apps/v1/namespaces/{namespace}/deployments"),
        (None, "lease") => format!("apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"),
        (None, "poddisruptionbudget") => {
            format!("apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets")
        }
        (None, "networkpolicy") => {
            format!("apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies")
        }
        (None, "pod" | "secret" | "configmap" | "serviceaccount" | "service") => {
            format!("api/v1/namespaces/{namespace}/{kind}s")
        }
        (None, other) => bail!("it is not known where the API server keeps a {other}"),
    };
    let request = Request::new(format!("/{path}")).get(name, &GetParams::default())?;
    client
        .request(request)
        .await
        .with_context(|| format!("cannot ask for {what}"))
}

/// A service account, bound to these cluster roles in its namespace, and the API as it.
pub fn sender(
    kubernetes: &Kubernetes,
    gateways: &Api,
    namespace: &str,
    name: &str,
    roles: &[&str],
) -> anyhow::Result<Api> {
    let mut items = vec![json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": namespace},
    })];
    items.extend(roles.iter().map(|role| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": format!("{name}-{role}"), "namespace": namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        })
    }));
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    kubernetes.apply(&list.to_string())?;
    Ok(gateways.with_key(&token(kubernetes, namespace, name, "herald")?))
}

/// A token of a service account for this audience.
pub fn token(
    kubernetes: &Kubernetes,
    namespace: &str,
    account: &str,
    audience: &str,
) -> anyhow::Result<String> {
    let asked = [
        "create",
        "token",
        account,
        "--namespace",
        namespace,
        "--audience",
        audience,
    ];
    let token = kubernetes.kubectl(&asked)?;
    Ok(token.trim().to_owned())
}

/// A resource's condition.
pub fn condition<'a>(resource: &'a Value, kind: &str) -> Option<&'a Value> {
    let conditions = resource["status"]["conditions"].as_array()?;
    conditions
        .iter()
        .find(|condition| condition["type"] == kind)
}

/// Whether a condition has this status, and everything was seen as it was declared last.
pub fn is(resource: &Value, kind: &str, status: &str) -> bool {
    let generation = &resource["metadata"]["generation"];
    &resource["status"]["observedGeneration"] == generation
        && condition(resource, kind).is_some_and(|condition| condition["status"] == status)
}

/// A request that a template be sent to so many addresses.
pub fn to_people(template: &str, count: usize) -> Value {
    let people: Vec<_> = (0..count)
        .map(|number| json!({"address": {"email": format!("person-{number}@people.example")}}))
        .collect();
    json!({"template": template, "recipients": people})
}

/// Waits until something has come. An error says what it was that did not.
pub async fn until_some<T>(
    what: &str,
    mut look: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let begin = Instant::now();
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        ensure!(begin.elapsed() < PATIENCE, "{what}: not in time");
        tokio::time::sleep(LOOK).await;
    }
}

/// Sends a request, again while the answer is that it was not now: 429, or 503.
pub async fn asked(request: &RequestBuilder) -> anyhow::Result<Response> {
    let begin = Instant::now();
    loop {
        let request = request.try_clone();
        let answer = request.context("it can be sent only once")?.send().await?;
        let status = answer.status();
        let again = [
            StatusCode::TOO_MANY_REQUESTS,
            StatusCode::SERVICE_UNAVAILABLE,
        ];
        if !again.contains(&status) || begin.elapsed() > PATIENCE {
            return Ok(answer);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether nothing of a notification is under way.
fn has_ended(notification: &Value) -> bool {
    notification["status"] == "ended" || notification["status"] == "cancelled"
}
