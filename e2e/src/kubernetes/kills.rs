//! Everything that Herald runs is killed, and the kubelet with it, while somebody sends.

use std::time::Duration;

use herald_e2e::environment::kubernetes::Server;

use super::Stage;
use super::desk::Who;
use super::load::{Load, RATE};

/// How long nobody looks after the pods.
const WITHOUT_KUBELET: Duration = Duration::from_secs(20);

/// Runs it.
pub async fn run(stage: &mut Stage) -> anyhow::Result<String> {
    let desk = stage.desk().await?;
    let load = Load::start(&desk, "kills").await?;
    for who in [Who::Operator, Who::Gateway, Who::Deliver] {
        let pods = stage.running(who, &[]).await?;
        for pod in &pods {
            stage.kill(who, pod)?;
            stage.running(who, std::slice::from_ref(pod)).await?;
            // What is up again has something to do before the next one goes.
            load.more(RATE as usize).await?;
        }
    }
    let kubernetes = stage.environment.kubernetes_mut()?;
    kubernetes.kill_server(Server::Kubelet)?;
    tokio::time::sleep(WITHOUT_KUBELET).await;
    kubernetes.launch(Server::Kubelet)?;
    kubernetes.until_ready(Server::Kubelet).await?;
    load.more(RATE as usize).await?;
    // One deliver pod.
    let outcome = load.finish(stage, 1).await?;
    Ok(format!(
        "both operators, both gateways and the deliver pod killed, {} s without a kubelet: {outcome}",
        WITHOUT_KUBELET.as_secs()
    ))
}
