//! The servers of the cluster: what each is told, and the order in which they start.

use std::process::Command;

use serde::{Deserialize, Serialize};

use super::node::{ADDRESS, Node};

/// A server of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Server {
    /// What the API server keeps.
    Etcd,
    /// What everybody speaks to.
    ApiServer,
    /// What runs containers.
    Containerd,
    /// What makes pods of Deployments, and ends what was deleted.
    Controllers,
    /// What says which node a pod runs on: there is only one, but somebody must say it.
    Scheduler,
    /// What runs pods.
    Kubelet,
    /// What makes Services' addresses lead to pods.
    Proxy,
    /// What answers for Services' names.
    Names,
}

impl Server {
    /// All, in the order in which they start.
    pub const ALL: [Self; 8] = [
        Self::Etcd,
        Self::Containerd,
        Self::ApiServer,
        Self::Controllers,
        Self::Scheduler,
        Self::Kubelet,
        Self::Proxy,
        Self::Names,
    ];

    /// The program's name, and its log's.
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::Containerd => "containerd",
            Self::Controllers => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Kubelet => "kubelet",
            Self::Proxy => "kube-proxy",
            Self::Names => "coredns",
        }
    }

    /// Where it says whether it is ready, in the node's network: scheme, address, path. `None`: nowhere, or to few.
    pub fn probe(self) -> Option<(&'static str, &'static str, &'static str)> {
        match self {
            Self::Etcd => Some(("http", "127.0.0.1:2379", "/readyz")),
            Self::ApiServer => Some(("https", "10.88.0.1:6443", "/readyz")),
            Self::Kubelet => Some(("http", "127.0.0.1:10248", "/healthz")),
            Self::Proxy => Some(("http", "127.0.0.1:10256", "/livez")),
            Self::Names => Some(("http", "10.88.0.1:8181", "/ready")),
            Self::Containerd | Self::Controllers | Self::Scheduler => None,
        }
    }

    /// How it is started. The files it names are the node's.
    pub fn command(self, node: &Node) -> Command {
        let mut command = node.inside(self.name());
        command.args(self.arguments(node));
        command
    }

    fn arguments(self, node: &Node) -> Vec<String> {
        let listed = match self {
            // What is lost with the machine is of no use without it.
            Self::Etcd => "--data-dir=/var/lib/etcd --unsafe-no-fsync --log-level=warn",
            Self::ApiServer => API_SERVER,
            Self::Containerd => "--config /var/lib/cluster/containerd.toml",
            Self::Controllers => CONTROLLERS,
            Self::Scheduler => SCHEDULER,
            Self::Kubelet => KUBELET,
            Self::Proxy => "--config=/var/lib/cluster/kube-proxy.yaml",
            Self::Names => "-conf /var/lib/cluster/Corefile",
        };
        listed
            .split_whitespace()
            .map(|argument| {
                argument
                    .replace("PKI", "/var/lib/cluster/pki")
                    .replace("ADDRESS", ADDRESS)
                    .replace("CONTROL_GROUP", node.control_group())
            })
            .collect()
    }
}

/// What pods ask of the API server, below `/var/log`.
pub(super) const AUDIT_LOG: &str = "audit.log";

/// As on clusters that are strict: who makes something that holds up the deletion of another must be allowed to.
const API_SERVER: &str = "
    --advertise-address=ADDRESS --bind-address=ADDRESS
    --etcd-servers=http://127.0.0.1:2379
    --service-cluster-ip-range=10.96.0.0/16
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement
    --audit-policy-file=/var/lib/cluster/audit-policy.yaml
    --audit-log-path=/var/log/audit.log --audit-log-maxsize=400 --audit-log-maxbackup=1
    --client-ca-file=PKI/ca.crt
    --tls-cert-file=PKI/kube-apiserver.crt --tls-private-key-file=PKI/kube-apiserver.key
    --kubelet-certificate-authority=PKI/ca.crt --kubelet-preferred-address-types=InternalIP
    --kubelet-client-certificate=PKI/kubelet-client.crt --kubelet-client-key=PKI/kubelet-client.key
    --service-account-issuer=https://kubernetes.default.svc
    --service-account-signing-key-file=PKI/tokens.key --service-account-key-file=PKI/tokens.key";

/// It is told late of a node that is silent: where there is only one, its pods would be taken out of Services although
/// it is the API server that was away.
const CONTROLLERS: &str = "
    --node-monitor-grace-period=5m
    --kubeconfig=PKI/kube-controller-manager.kubeconfig
    --leader-elect=false --use-service-account-credentials
    --service-account-private-key-file=PKI/tokens.key --root-ca-file=PKI/ca.crt
    --cluster-signing-cert-file=PKI/ca.crt --cluster-signing-key-file=PKI/ca.key";

const SCHEDULER: &str = "--kubeconfig=PKI/kube-scheduler.kubeconfig --leader-elect=false";

const KUBELET: &str = "
    --config=/var/lib/cluster/kubelet.yaml --kubeconfig=PKI/kubelet.kubeconfig
    --hostname-override=node1 --node-ip=ADDRESS --cgroup-root=/CONTROL_GROUP";
