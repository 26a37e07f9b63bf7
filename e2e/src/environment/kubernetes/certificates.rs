//! Who is who in the cluster: an authority of its own, a certificate for each server, and the key of its tokens.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;

use super::node::ADDRESS;

/// The group that may do everything.
const MASTERS: &str = "system:masters";

/// The API server's names. Outside the node it is reached through a port of 127.0.0.1.
const API_SERVER: [&str; 8] = [
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "localhost",
    "127.0.0.1",
    ADDRESS,
    "10.96.0.1",
];

/// Those who have a certificate: the file's name, the user, the group, and the names as a server.
const EVERYBODY: [(&str, &str, Option<&str>, &[&str]); 7] = [
    ("kube-apiserver", "kube-apiserver", None, &API_SERVER),
    (
        "kubelet-client",
        "kube-apiserver-kubelet-client",
        Some(MASTERS),
        &[],
    ),
    ("admin", "kubernetes-admin", Some(MASTERS), &[]),
    (
        "kube-controller-manager",
        "system:kube-controller-manager",
        None,
        &[],
    ),
    ("kube-scheduler", "system:kube-scheduler", None, &[]),
    ("kube-proxy", "system:kube-proxy", None, &[]),
    (
        "kubelet",
        "system:node:node1",
        Some("system:nodes"),
        &["node1", ADDRESS],
    ),
];

/// The cluster's authority.
#[derive(Debug)]
pub struct Authority<'a> {
    folder: &'a Path,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl<'a> Authority<'a> {
    /// Makes it, everybody's certificate and kubeconfig, and the key that service accounts' tokens are signed with.
    pub fn establish(folder: &'a Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).context("cannot make the folder for certificates")?;
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "cluster");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        write(&folder.join("ca.crt"), &pem)?;
        write(&folder.join("ca.key"), &key.serialize_pem())?;
        let authority = Self {
            folder,
            pem,
            issuer: Issuer::new(params, key),
        };
        for (name, user, group, names) in EVERYBODY {
            authority.certify(name, user, group, names)?;
            let server = format!("https://{ADDRESS}:6443");
            authority.kubeconfig(name, &server, &folder.join(format!("{name}.kubeconfig")))?;
        }
        token_key(folder)?;
        Ok(authority)
    }

    fn certify(
        &self,
        name: &str,
        user: &str,
        group: Option<&str>,
        names: &[&str],
    ) -> anyhow::Result<()> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, user);
        if let Some(group) = group {
            params
                .distinguished_name
                .push(DnType::OrganizationName, group);
        }
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        write(&self.file(name, "crt"), &certificate.pem())?;
        write(&self.file(name, "key"), &key.serialize_pem())
    }

    /// Writes how somebody who has a certificate reaches the API server at an address, all in one file.
    pub fn kubeconfig(&self, name: &str, server: &str, path: &Path) -> anyhow::Result<()> {
        let read = |extension: &str| -> anyhow::Result<String> {
            let file = self.file(name, extension);
            let bytes =
                fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            Ok(STANDARD.encode(bytes))
        };
        // JSON is YAML.
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "herald", "cluster": {
                "server": server,
                "certificate-authority-data": STANDARD.encode(&self.pem),
            }}],
            "users": [{"name": name, "user": {
                "client-certificate-data": read("crt")?,
                "client-key-data": read("key")?,
            }}],
            "contexts": [{"name": "herald", "context": {"cluster": "herald", "user": name}}],
            "current-context": "herald",
        });
        write(path, &serde_json::to_string_pretty(&config)?)
    }

    fn file(&self, name: &str, extension: &str) -> PathBuf {
        self.folder.join(format!("{name}.{extension}"))
    }
}

/// RSA, since that is what clusters sign with.
fn token_key(folder: &Path) -> anyhow::Result<()> {
    let output = Command::new("openssl")
        .args(["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt"])
        .args(["rsa_keygen_bits:2048", "-out"])
        .arg(folder.join("tokens.key"))
        .stdin(Stdio::null())
        .output()
        .context("cannot run openssl")?;
    ensure!(
        output.status.success(),
        "openssl makes no key: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
