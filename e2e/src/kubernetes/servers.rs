//! The cluster's own servers die and come back, and pods do not feel it: what later parts do to Herald rests on that.

use anyhow::ensure;
use herald_e2e::environment::kubernetes::Server;
use serde_json::json;

use super::Stage;

/// Which container a pod runs, and how often it was started again.
const CONTAINER: &str = "jsonpath={.status.containerStatuses[0].containerID} \
                         {.status.containerStatuses[0].restartCount}";

/// Runs it.
pub async fn run(stage: &mut Stage) -> anyhow::Result<String> {
    let kubernetes = stage.environment.kubernetes_mut()?;
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "bystander", "namespace": "default"},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "pause", "image": "herald.test/pause:1"}],
        },
    });
    kubernetes.apply(&pod.to_string())?;
    let ready = ["wait", "--for=condition=Ready", "--timeout=240s"];
    kubernetes.kubectl(&[&ready[..], &["pod/bystander"]].concat())?;
    let container = ["get", "pod", "bystander", "--output", CONTAINER];
    let before = kubernetes.kubectl(&container)?;
    ensure!(before.ends_with(" 0"), "it runs {before}");
    for server in [Server::Kubelet, Server::ApiServer, Server::Containerd] {
        kubernetes.kill_server(server)?;
        kubernetes.launch(server)?;
        kubernetes.until_ready(server).await?;
        kubernetes.kubectl(&[&ready[..], &["pod/bystander", "node/node1"]].concat())?;
    }
    let after = kubernetes.kubectl(&container)?;
    ensure!(before == after, "a pod felt it: {before} became {after}");
    kubernetes.kubectl(&["delete", "pod", "bystander", "--timeout=240s"])?;
    Ok("kubelet, API server and containerd were killed and came back; a pod ran on".to_owned())
}
