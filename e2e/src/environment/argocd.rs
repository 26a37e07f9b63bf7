//! Argo CD beside a cluster: what compares and applies, and what reads repositories, as processes in its network.
//!
//! An Application may name any repository of this machine: `file:///…`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::group::Kept;
use super::kubernetes::Kubernetes;
use super::progress;
use crate::process;

/// The namespace that Applications are in.
pub const NAMESPACE: &str = "argocd";

/// Its settings.
const SETTINGS: &str = include_str!("../../cluster/config/argocd.yaml");

/// Argo CD.
#[derive(Debug, Serialize, Deserialize)]
pub struct ArgoCd {
    servers: BTreeMap<String, Kept>,
}

impl ArgoCd {
    pub(super) fn start(
        folder: &Path,
        kubernetes: &Kubernetes,
        guarded: bool,
    ) -> anyhow::Result<Self> {
        process::need(&["argocd"])?;
        progress("Argo CD: starting");
        let home = fs::canonicalize(process::cache().join("argocd"))
            .context("Argo CD is not where scripts/need puts it")?;
        let namespace = format!(
            r#"{{"apiVersion": "v1", "kind": "Namespace", "metadata": {{"name": "{NAMESPACE}"}}}}"#
        );
        kubernetes.apply(&namespace)?;
        let crds = home.join("crds").display().to_string();
        kubernetes.kubectl(&["apply", "--server-side", "-f", &crds])?;
        kubernetes.established(&["-f", &crds])?;
        kubernetes.apply(SETTINGS)?;
        let own = folder.join("argocd");
        for inner in ["gpg", "plugins", "ssh", "tls"] {
            fs::create_dir_all(own.join(inner)).context("cannot make Argo CD's folder")?;
        }
        let mut argocd = Self {
            servers: BTreeMap::new(),
        };
        let all: [(&str, PathBuf, &[&str]); 3] = [
            (
                "redis",
                "redis-server".into(),
                &["--bind", "127.0.0.1", "--save", ""],
            ),
            (
                "argocd-repo-server",
                home.join("bin/argocd-repo-server"),
                REPOSITORIES,
            ),
            (
                "argocd-application-controller",
                home.join("bin/argocd-application-controller"),
                CONTROLLER,
            ),
        ];
        for (name, program, arguments) in all {
            let mut command = kubernetes.beside(program);
            command
                .args(arguments)
                .current_dir(&own)
                .env("HOME", &own)
                // It renders charts with `helm`.
                .env("PATH", kubernetes.path()?)
                .env("KUBECONFIG", kubernetes.inner_kubeconfig())
                .env("ARGOCD_GPG_ENABLED", "false")
                .env("ARGOCD_GPG_DATA_PATH", own.join("gpg"))
                .env("ARGOCD_PLUGINSOCKFILEPATH", own.join("plugins"))
                .env("ARGOCD_SSH_DATA_PATH", own.join("ssh"))
                .env("ARGOCD_TLS_DATA_PATH", own.join("tls"))
                // It has no other cluster to speak to than the one it is told of.
                .env("ARGOCD_FAKE_IN_CLUSTER", "true");
            let log = folder.join(format!("{name}.log"));
            let mut kept = Kept::new(log, guarded);
            kept.start(&mut command)?;
            argocd.servers.insert(name.to_owned(), kept);
        }
        progress(&argocd.describe());
        Ok(argocd)
    }

    pub(super) fn leave(&mut self) -> anyhow::Result<()> {
        self.servers.values_mut().try_for_each(Kept::leave)
    }

    pub(super) fn kill(&mut self) {
        self.servers.values_mut().for_each(Kept::kill);
    }

    pub(super) fn is_alive(&self) -> bool {
        self.servers.values().all(Kept::is_alive)
    }

    pub(super) fn describe(&self) -> String {
        let how = if self.is_alive() { "" } else { " (dead)" };
        format!("Argo CD: Applications in the namespace {NAMESPACE}{how}")
    }
}

const REPOSITORIES: &[&str] = &[
    "--address",
    "127.0.0.1",
    "--disable-tls",
    "--redis",
    "127.0.0.1:6379",
];

const CONTROLLER: &[&str] = &[
    "--namespace",
    NAMESPACE,
    "--redis",
    "127.0.0.1:6379",
    "--repo-server",
    "127.0.0.1:8081",
    "--repo-server-plaintext",
    "--status-processors",
    "4",
    "--operation-processors",
    "2",
    // Nobody asks its API, which would say this, too.
    "--persist-resource-health",
];
