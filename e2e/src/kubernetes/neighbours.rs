//! What runs beside the cluster is reached from a pod by its name: Pulsar, PostgreSQL, a mail server.

use std::path::PathBuf;

use anyhow::ensure;
use herald_e2e::environment::kubernetes::image::Image;
use serde_json::json;

use super::Stage;
use super::herald::{look, until_some};
use super::namespace::with_namespace;

/// An image of a shell that can connect.
const IMAGE: &str = "herald.test/bash:1";

/// Says what each neighbour answers first, in a line; of PostgreSQL, that it takes an encrypted connection or not.
const SCRIPT: &str = r#"
exec 3<>/dev/tcp/mail.neighbours/2525; read -r -t 20 line <&3; echo "mail: $line"
exec 3<>/dev/tcp/pulsar.neighbours/8080; printf 'GET /admin/v2/brokers/health HTTP/1.0\r\n\r\n' >&3; read -r -t 20 line <&3; echo "pulsar: $line"
exec 3<>/dev/tcp/pulsar.neighbours/6650 && echo "pulsar: listens"
exec 3<>/dev/tcp/postgres.neighbours/5432; printf '\x00\x00\x00\x08\x04\xd2\x16\x2f' >&3; read -r -t 20 -n 1 line <&3; echo "postgres: $line"
"#;

/// Runs it.
pub async fn run(stage: &Stage) -> anyhow::Result<String> {
    let kubernetes = stage.kubernetes()?;
    let archive = stage.folder.join("bash.tar");
    let image = Image {
        name: IMAGE,
        entrypoint: "/bin/bash",
        programs: &[(PathBuf::from("/bin/bash"), "/bin/bash")],
        files: &[],
    };
    image.write(&archive)?;
    kubernetes.import(&archive)?;
    with_namespace(stage, "neighbours", async |client, namespace| {
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "visitor", "namespace": namespace},
            "spec": {
                "restartPolicy": "Never",
                "containers": [{"name": "bash", "image": IMAGE, "args": ["-c", SCRIPT]}],
            },
        });
        // No pod is let in before it.
        until_some("the account of its pods", async || {
            Ok(look(&client, &namespace, "serviceaccount/default")
                .await
                .ok())
        })
        .await?;
        kubernetes.apply(&pod.to_string())?;
        let ended = "--for=jsonpath={.status.phase}=Succeeded";
        let within = ["--namespace", &namespace, "--timeout=240s"];
        kubernetes.kubectl(&[&["wait", ended, "pod/visitor"], &within[..]].concat())?;
        let said = kubernetes.kubectl(&["logs", "visitor", "--namespace", &namespace])?;
        for expected in [
            "mail: 220 ",
            "pulsar: HTTP/1.1 401",
            "pulsar: listens",
            "postgres: N",
        ] {
            ensure!(
                said.lines().any(|line| line.starts_with(expected)),
                "no \"{expected}\" in what a pod was told: {said}"
            );
        }
        Ok("a pod reaches Pulsar, PostgreSQL and a mail server by their names".to_owned())
    })
    .await
}
