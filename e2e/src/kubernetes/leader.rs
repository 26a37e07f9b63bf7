//! Of two operators one leads. When it hangs the other leads once its Lease has run out, and when it wakes it gives up
//! before it writes. When it is asked to go it hands over at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tokio_util::task::AbortOnDropHandle;

use super::Stage;
use super::desk::{Pod, Who};
use super::herald::{LOOK, NAMESPACE, PATIENCE, until_some};
use super::load::Load;
use crate::server::Api;

/// An operator that does not answer for so long claims nothing.
const ANSWER: Duration = Duration::from_millis(500);

/// How often all are asked whether they lead.
const ASK: Duration = Duration::from_millis(100);

/// An operator, and where it says whether it leads.
struct Operator {
    pod: Pod,
    probes: Api,
}

/// Runs it.
pub async fn run(stage: &mut Stage) -> anyhow::Result<String> {
    let desk = stage.desk().await?;
    let load = Load::start(&desk, "leader").await?;
    let [first, second] = operators(stage).await?;
    let watch = Watch::start(vec![first.probes.clone(), second.probes.clone()]);
    let holder = lease(stage)?;
    let (leads, stands_by) = if first.is(&holder) {
        (first, second)
    } else {
        (second, first)
    };
    ensure!(
        leads.answer().await?,
        "{holder:?} holds the Lease and does not lead"
    );
    ensure!(!stands_by.answer().await?, "two lead");
    let writes = stands_by.writes().await?;
    ensure!(writes == 0.0, "who stands by has written {writes} times");

    let begin = Instant::now();
    let kubernetes = stage.kubernetes()?;
    kubernetes.signal_container(&leads.pod.container, Signal::STOP)?;
    let team = stage.desk_team(&desk)?;
    team.apply(&[team.mail("meanwhile")])?;
    while stands_by.leads().await != Some(true) {
        ensure!(begin.elapsed() < PATIENCE, "nobody leads any more");
        tokio::time::sleep(LOOK).await;
    }
    let took = begin.elapsed();
    let next = lease(stage)?;
    ensure!(
        stands_by.is(&next),
        "{next:?} holds the Lease, and another leads"
    );
    ensure!(
        next.transitions == holder.transitions + 1,
        "{holder:?} became {next:?}"
    );
    // At once: the kubelet waits only so long for one that does not answer.
    kubernetes.signal_container(&leads.pod.container, Signal::CONT)?;
    team.ready("channel/meanwhile").await?;
    ensure!(
        stands_by.writes().await? > 0.0,
        "who leads has made a Channel ready without a write"
    );
    stage
        .running(Who::Operator, std::slice::from_ref(&leads.pod))
        .await?;
    let before = [
        "logs",
        &leads.pod.name,
        "--namespace",
        NAMESPACE,
        "--previous",
    ];
    let said = kubernetes.kubectl(&before)?;
    ensure!(
        said.contains("the Lease was lost"),
        "who hung ended otherwise: {said}"
    );

    // Asked to go, it does not let the other wait.
    let back = Instant::now();
    let pod = [
        "delete",
        "pod",
        &stands_by.pod.name,
        "--namespace",
        NAMESPACE,
    ];
    kubernetes.kubectl(&[&pod[..], &["--wait=false"]].concat())?;
    while stands_by.is(&lease(stage)?) {
        ensure!(back.elapsed() < PATIENCE, "the Lease is not given back");
        tokio::time::sleep(LOOK).await;
    }
    let handed = back.elapsed();
    stage
        .running(Who::Operator, std::slice::from_ref(&stands_by.pod))
        .await?;
    let asked = watch.finish().await?;
    let outcome = load.finish(stage, 0).await?;
    Ok(format!(
        "the leader hung: the other led after {took:.1?}; asked to go, it handed over after {handed:.1?}; never two in \
         {asked} answers; {outcome}"
    ))
}

/// Who holds the Lease.
#[derive(Debug)]
struct Lease {
    holder: String,
    transitions: i64,
}

fn lease(stage: &Stage) -> anyhow::Result<Lease> {
    let asked = [
        "get",
        "lease",
        "herald-operator",
        "--namespace",
        NAMESPACE,
        "--output",
        "json",
    ];
    let lease: Value = serde_json::from_str(&stage.kubernetes()?.kubectl(&asked)?)
        .context("the Lease is no JSON")?;
    let spec = &lease["spec"];
    Ok(Lease {
        holder: spec["holderIdentity"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        transitions: spec["leaseTransitions"].as_i64().unwrap_or_default(),
    })
}

/// Both, once one of them leads.
async fn operators(stage: &mut Stage) -> anyhow::Result<[Operator; 2]> {
    let begin = Instant::now();
    loop {
        let mut operators = Vec::new();
        for pod in stage.running(Who::Operator, &[]).await? {
            let address = format!("{}:9090", pod.address);
            let port = stage.environment.kubernetes_mut()?.reach(&address)?.port();
            let probes = Api::new(port)?;
            operators.push(Operator { pod, probes });
        }
        let holder = lease(stage)?;
        let mut leads = false;
        for operator in &operators {
            leads |= operator.is(&holder) && operator.leads().await == Some(true);
        }
        if leads {
            let both = operators.try_into().ok();
            return both.context("there are not two operators");
        }
        ensure!(
            begin.elapsed() < PATIENCE,
            "nobody leads, and the Lease is {holder:?}'s"
        );
        tokio::time::sleep(LOOK).await;
    }
}

impl Operator {
    fn is(&self, lease: &Lease) -> bool {
        lease.holder.starts_with(&format!("{}-", self.pod.name))
    }

    async fn leads(&self) -> Option<bool> {
        leads(&self.probes).await
    }

    /// The same, however long it takes to answer.
    async fn answer(&self) -> anyhow::Result<bool> {
        let what = format!("an answer of {}", self.pod.name);
        until_some(&what, async || Ok(self.leads().await)).await
    }

    /// What it has written to Kubernetes, but to the Lease.
    async fn writes(&self) -> anyhow::Result<f64> {
        let metrics = self.probes.metrics().await?;
        Ok(metrics
            .get("herald_operator_writes_total")
            .copied()
            .unwrap_or_default())
    }
}

/// Whether an operator says that it leads. `None`: it does not answer.
async fn leads(probes: &Api) -> Option<bool> {
    let metrics = tokio::time::timeout(ANSWER, probes.metrics())
        .await
        .ok()?
        .ok()?;
    Some(metrics.get("herald_operator_leader").copied() == Some(1.0))
}

/// What one said last when it was asked whether it leads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Said {
    No,
    Yes,
    /// Yes, and after it another did: if it says so again without having said no, both lead. No answer is not a no.
    YesBeforeAnother,
}

/// Looks whether at any time two lead, by what they say.
struct Watch {
    ends: Arc<AtomicBool>,
    watching: AbortOnDropHandle<anyhow::Result<usize>>,
}

impl Watch {
    fn start(operators: Vec<Api>) -> Self {
        let ends = Arc::<AtomicBool>::default();
        let end = Arc::clone(&ends);
        let watching = tokio::spawn(async move {
            let mut asked = 0;
            let mut said = vec![Said::No; operators.len()];
            while !end.load(Ordering::Relaxed) {
                for (i, operator) in operators.iter().enumerate() {
                    let Some(leads) = leads(operator).await else {
                        continue;
                    };
                    asked += 1;
                    if !leads {
                        said[i] = Said::No;
                        continue;
                    }
                    ensure!(said[i] != Said::YesBeforeAnother, "two lead");
                    for before in said.iter_mut().filter(|said| **said == Said::Yes) {
                        *before = Said::YesBeforeAnother;
                    }
                    said[i] = Said::Yes;
                }
                tokio::time::sleep(ASK).await;
            }
            Ok(asked)
        });
        let watching = AbortOnDropHandle::new(watching);
        Self { ends, watching }
    }

    /// How many answers there were, none of which contradicts another.
    async fn finish(self) -> anyhow::Result<usize> {
        self.ends.store(true, Ordering::Relaxed);
        self.watching.await.context("who watches panicked")?
    }
}
