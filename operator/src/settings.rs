//! How the operator is set up: by flags, the environment and a file, in this order of precedence.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::pulsar_admin;

/// What carries what moves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "camelCase")]
pub enum Broker {
    /// Apache Pulsar: Channels become topics and pods.
    #[default]
    Pulsar,
    /// A queue within one process that is not the operator's: resources are looked at, and nothing is made.
    Embedded,
}

/// As whom a Channel's pods speak to Pulsar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "camelCase")]
#[value(rename_all = "camelCase")]
pub enum PodAuth {
    /// As nobody: a cluster without authentication.
    #[default]
    None,
    /// As the holder of a token in a Secret of the Channel's namespace.
    Secret,
    /// As its service account, by a projected token of audience `pulsar`.
    ServiceAccount,
}

/// Everything that can be set. What is not set has a usual value, or is missed.
#[derive(Debug, Clone, Default, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// A YAML file with any of these settings, in camelCase.
    #[arg(long, env = "HERALD_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Prints the settings in force and ends.
    #[arg(long)]
    #[serde(skip)]
    pub print_config: bool,
    /// What carries what moves [default: pulsar]
    #[arg(long, env = "HERALD_BROKER", value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker: Option<Broker>,
    /// The namespaces looked after, separated by commas [default: all]
    #[arg(
        long,
        env = "HERALD_WATCH_NAMESPACES",
        value_name = "NAMES",
        value_delimiter = ','
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub watch_namespaces: Vec<String>,
    /// The operator's own namespace, where its Lease is, and with an embedded broker the credentials [default: herald-system]
    #[arg(long, env = "HERALD_NAMESPACE", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// What this operator is called among several; something random is added [default: herald-operator]
    #[arg(long, env = "HERALD_POD", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// How long a Lease counts that is not renewed [default: 15]
    #[arg(long, env = "HERALD_LEASE_SECONDS", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_seconds: Option<u32>,
    /// Where /livez, /readyz and /metrics are served [default: 0.0.0.0:9090]
    #[arg(long, env = "HERALD_PROBES", value_name = "ADDRESS:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probes: Option<SocketAddr>,
    /// Resources of a kind that are looked at at once [default: 16]
    #[arg(long, env = "HERALD_CONCURRENCY", value_name = "NUMBER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u16>,

    /// Pulsar's web service, http://… or https://…
    #[arg(long, env = "HERALD_PULSAR_ADMIN_URL", value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pulsar_admin_url: Option<String>,
    /// A file with the operator's token for Pulsar, read again for each request.
    #[arg(long, env = "HERALD_PULSAR_TOKEN_FILE", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pulsar_token_file: Option<PathBuf>,
    /// PEM certificates to trust beside the usual ones; pods get a copy.
    #[arg(long, env = "HERALD_PULSAR_CA_FILE", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pulsar_ca_file: Option<PathBuf>,
    /// The tenant in which all topics are [default: herald]
    #[arg(long, env = "HERALD_PULSAR_TENANT", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pulsar_tenant: Option<String>,
    /// Partitions of each topic of requests [default: 4]
    #[arg(long, env = "HERALD_REQUEST_PARTITIONS", value_name = "NUMBER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_partitions: Option<u32>,
    /// The gateways' role in Pulsar, which may use all topics.
    #[arg(long, env = "HERALD_PULSAR_GATEWAY_ROLE", value_name = "ROLE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pulsar_gateway_role: Option<String>,

    /// pods: the address of the brokers, pulsar://… or pulsar+ssl://…
    #[arg(long, env = "HERALD_PULSAR_URL", value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pulsar_url: Option<String>,
    /// pods: as whom they speak to Pulsar [default: none]
    #[arg(long, env = "HERALD_PULSAR_POD_AUTH", value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pulsar_pod_auth: Option<PodAuth>,
    /// pods: the Secret of the Channel's namespace whose key `token` they use [default: herald-pulsar]
    #[arg(long, env = "HERALD_PULSAR_POD_SECRET", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pulsar_pod_secret: Option<String>,
    /// pods: their role in Pulsar, with {namespace}, {channel} and {serviceAccount} in it
    /// [default: with a service account system:serviceaccount:{namespace}:{serviceAccount}, with a Secret
    /// herald-{namespace}]
    #[arg(long, env = "HERALD_PULSAR_POD_ROLE", value_name = "ROLE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pulsar_pod_role: Option<String>,
    /// pods: their image.
    #[arg(long, env = "HERALD_IMAGE", value_name = "IMAGE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// pods: when their image is pulled [default: `IfNotPresent`]
    #[arg(long, env = "HERALD_IMAGE_PULL_POLICY", value_name = "POLICY")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<String>,
    /// pods: what they log, as `HERALD_LOG`.
    #[arg(long, env = "HERALD_POD_LOG", value_name = "FILTER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_log: Option<String>,
    /// pods: most deliveries sent whose outcome has no receipt yet.
    #[arg(long, env = "HERALD_WINDOW", value_name = "NUMBER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// How long settled deliveries are remembered; the same for gateways and pods [default: 900]
    #[arg(long, env = "HERALD_HORIZON_SECONDS", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub horizon_seconds: Option<u32>,
    /// pods: how long shutting down may take [default: 25]
    #[arg(long, env = "HERALD_DRAIN_SECONDS", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_seconds: Option<u32>,
    /// pods: whether a Channel's allowPrivateAddresses counts [default: false]
    #[arg(
        long,
        env = "HERALD_ALLOW_PRIVATE_ADDRESSES",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_private_addresses: Option<bool>,
    /// For how long nothing of a Channel with autoscaling may have waited too long before it has one pod less [default: 300]
    #[arg(long, env = "HERALD_SCALE_DOWN_SECONDS", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_down_seconds: Option<u32>,

    /// The gateways, http://… or https://…: what they know of Channels and Schedules.
    #[arg(long, env = "HERALD_GATEWAY_URL", value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway_url: Option<String>,
    /// A file with the operator's token for the gateways, read again for each request.
    #[arg(long, env = "HERALD_GATEWAY_TOKEN_FILE", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway_token_file: Option<PathBuf>,
    /// PEM certificates to trust for the gateways beside the usual ones.
    #[arg(long, env = "HERALD_GATEWAY_CA_FILE", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway_ca_file: Option<PathBuf>,
}

/// A setting that is missing or wrong.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file cannot be read.
    #[error("{setting}: cannot read {path}: {source}")]
    Read {
        /// Which setting names it.
        setting: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("config: {path}: {reason}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and with which setting.
        reason: String,
    },
    /// A setting that is needed.
    #[error("{setting} is not set: give --{flag}, {variable} or {setting} in the file of --config")]
    Find {
        /// Its name in the file.
        setting: &'static str,
        /// Its flag.
        flag: &'static str,
        /// Its variable.
        variable: &'static str,
    },
    /// A setting with a value that it cannot have.
    #[error("{setting}: {reason}")]
    Check {
        /// Its name in the file.
        setting: &'static str,
        /// What is wrong, and what it should be.
        reason: String,
    },
}

/// What pods of Channels need to know, all of it checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSettings {
    /// The address of the brokers.
    pub pulsar_url: String,
    /// Its port, for network policies.
    pub pulsar_port: u16,
    /// The tenant in which all topics are.
    pub tenant: String,
    /// PEM certificates of those who signed the brokers'; `None`: the usual ones.
    pub ca: Option<String>,
    /// As whom they speak to Pulsar.
    pub auth: PodAuth,
    /// The Secret with their token, of the Channel's namespace.
    pub secret: String,
    /// Their role, with `{namespace}`, `{channel}` and `{serviceAccount}` in it; `None`: they have none.
    pub role: Option<String>,
    /// Their image.
    pub image: String,
    /// When it is pulled.
    pub image_pull_policy: String,
    /// What they log; `None`: the usual.
    pub log: Option<String>,
    /// W; `None`: the usual.
    pub window: Option<usize>,
    /// How long settled deliveries are remembered; `None`: the usual.
    pub horizon_seconds: Option<u32>,
    /// How long shutting down may take.
    pub drain_seconds: u32,
    /// Whether a Channel's `allowPrivateAddresses` counts.
    pub allow_private_addresses: bool,
}

impl PodSettings {
    /// The role of a channel's pods; `None`: they have none.
    pub fn role_of(&self, namespace: &str, channel: &str, service_account: &str) -> Option<String> {
        let role = self.role.as_ref()?;
        let role = role.replace("{namespace}", namespace);
        let role = role.replace("{channel}", channel);
        Some(role.replace("{serviceAccount}", service_account))
    }
}

fn need<'a>(
    value: Option<&'a str>,
    setting: &'static str,
    flag: &'static str,
    variable: &'static str,
) -> Result<&'a str, SettingsError> {
    value.ok_or(SettingsError::Find {
        setting,
        flag,
        variable,
    })
}

impl Settings {
    /// With what the file says, where flags and environment say nothing.
    pub fn complete(self) -> Result<Self, SettingsError> {
        let Some(path) = self.config.clone() else {
            return Ok(self);
        };
        let text = std::fs::read_to_string(&path).map_err(|source| SettingsError::Read {
            setting: "config",
            path: path.clone(),
            source,
        })?;
        self.over(&path, &text)
    }

    fn over(self, path: &Path, file: &str) -> Result<Self, SettingsError> {
        let wrong = |reason: String| SettingsError::Parse {
            path: path.to_owned(),
            reason,
        };
        let read: Value = serde_saphyr::from_str(file).map_err(|error| wrong(error.to_string()))?;
        let mut merged = match read {
            Value::Null => Map::new(),
            Value::Object(settings) => settings,
            _ => return Err(wrong("it must be one mapping of settings".to_owned())),
        };
        let given = serde_json::to_value(&self).map_err(|error| wrong(error.to_string()))?;
        if let Value::Object(given) = given {
            merged.extend(given);
        }
        let read: Self = serde_path_to_error::deserialize(Value::Object(merged))
            .map_err(|error| wrong(format!("{}: {}", error.path(), error.inner())))?;
        Ok(Self {
            config: self.config,
            print_config: self.print_config,
            ..read
        })
    }

    /// What is set, as it could stand in the file. Nothing in it is secret: tokens are files.
    pub fn print(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// What carries what moves.
    pub fn broker(&self) -> Broker {
        self.broker.unwrap_or_default()
    }

    /// The operator's own namespace.
    pub fn namespace(&self) -> &str {
        let usual = herald_crds::names::SYSTEM_NAMESPACE;
        self.namespace.as_deref().unwrap_or(usual)
    }

    /// How long a Lease counts that is not renewed; at least 3 s.
    pub fn lease(&self) -> Duration {
        Duration::from_secs(u64::from(self.lease_seconds.unwrap_or(15).max(3)))
    }

    /// Where health and metrics are served.
    pub fn probes(&self) -> SocketAddr {
        let usual = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 9090));
        self.probes.unwrap_or(usual)
    }

    /// Resources of a kind that are looked at at once.
    pub fn concurrency(&self) -> u16 {
        self.concurrency.unwrap_or(16).clamp(1, 256)
    }

    /// Partitions of each topic of requests.
    pub fn request_partitions(&self) -> u32 {
        self.request_partitions.unwrap_or(4).clamp(1, 64)
    }

    /// The tenant in which all topics are.
    pub fn tenant(&self) -> &str {
        self.pulsar_tenant.as_deref().unwrap_or("herald")
    }

    /// How long settled deliveries are remembered.
    pub fn horizon(&self) -> Duration {
        Duration::from_secs(u64::from(self.horizon_seconds.unwrap_or(900).max(60)))
    }

    /// For how long all has to be calm before a Channel has one pod less; at least 5 s.
    pub fn scale_down(&self) -> Duration {
        let seconds = self.scale_down_seconds.unwrap_or(300).max(5);
        Duration::from_secs(u64::from(seconds))
    }

    /// Where Pulsar's web service is, and as whom to speak to it.
    pub fn pulsar_admin(&self) -> Result<pulsar_admin::Settings, SettingsError> {
        let url = need(
            self.pulsar_admin_url.as_deref(),
            "pulsarAdminUrl",
            "pulsar-admin-url",
            "HERALD_PULSAR_ADMIN_URL",
        )?;
        let token = self.pulsar_token_file.clone();
        Ok(pulsar_admin::Settings {
            url: url.to_owned(),
            token: token.map_or(pulsar_admin::Token::None, pulsar_admin::Token::File),
            ca: self.pulsar_ca_file.clone(),
            timeout: Duration::from_secs(30),
        })
    }

    /// What pods of Channels need to know. Reads the file of `pulsarCaFile`.
    pub fn pods(&self) -> Result<PodSettings, SettingsError> {
        let url = need(
            self.pulsar_url.as_deref(),
            "pulsarUrl",
            "pulsar-url",
            "HERALD_PULSAR_URL",
        )?;
        let usual_port = match url.split_once("://") {
            Some(("pulsar", _)) => 6650,
            Some(("pulsar+ssl", _)) => 6651,
            _ => {
                return Err(SettingsError::Check {
                    setting: "pulsarUrl",
                    reason: format!("{url:?} must begin with pulsar:// or pulsar+ssl://"),
                });
            }
        };
        let port = url
            .trim_end_matches('/')
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok())
            .unwrap_or(usual_port);
        let image = need(self.image.as_deref(), "image", "image", "HERALD_IMAGE")?;
        let ca = self.pulsar_ca_file.as_ref().map(|path| {
            std::fs::read_to_string(path).map_err(|source| SettingsError::Read {
                setting: "pulsarCaFile",
                path: path.clone(),
                source,
            })
        });
        let auth = self.pulsar_pod_auth.unwrap_or_default();
        let usual_role = match auth {
            PodAuth::None => None,
            PodAuth::Secret => Some("herald-{namespace}".to_owned()),
            PodAuth::ServiceAccount => {
                Some("system:serviceaccount:{namespace}:{serviceAccount}".to_owned())
            }
        };
        let secret = self.pulsar_pod_secret.clone();
        let policy = self.image_pull_policy.clone();
        Ok(PodSettings {
            pulsar_url: url.to_owned(),
            pulsar_port: port,
            tenant: self.tenant().to_owned(),
            ca: ca.transpose()?,
            auth,
            secret: secret.unwrap_or_else(|| "herald-pulsar".to_owned()),
            role: self.pulsar_pod_role.clone().or(usual_role),
            image: image.to_owned(),
            image_pull_policy: policy.unwrap_or_else(|| "IfNotPresent".to_owned()),
            log: self.pod_log.clone(),
            window: self.window,
            horizon_seconds: self.horizon_seconds,
            drain_seconds: self.drain_seconds.unwrap_or(25).clamp(1, 600),
            allow_private_addresses: self.allow_private_addresses.unwrap_or(false),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_stands_over_the_file_and_the_file_over_what_is_usual() {
        let given = Settings {
            concurrency: Some(7),
            ..Settings::default()
        };
        let file = "concurrency: 9\nbroker: embedded\nwatchNamespaces: [shop, platform]\npulsarPodAuth: serviceAccount\n";
        let merged = given.over(Path::new("herald.yaml"), file).unwrap();
        assert_eq!(merged.concurrency(), 7);
        assert_eq!(merged.broker(), Broker::Embedded);
        assert_eq!(merged.watch_namespaces, ["shop", "platform"]);
        assert_eq!(merged.pulsar_pod_auth, Some(PodAuth::ServiceAccount));
        assert_eq!(merged.namespace(), "herald-system");
    }

    #[test]
    fn what_is_wrong_is_said_with_the_name_of_the_setting() {
        let over = |file: &str| {
            let read = Settings::default().over(Path::new("herald.yaml"), file);
            read.unwrap_err().to_string()
        };
        assert!(over("brokers: pulsar").contains("brokers"));
        assert!(over("broker: kafka").contains("broker"));
        assert!(over("- 1").contains("mapping"));
        let missing = Settings::default().pulsar_admin().unwrap_err().to_string();
        assert!(missing.contains("pulsarAdminUrl") && missing.contains("HERALD_PULSAR_ADMIN_URL"));
    }

    #[test]
    fn the_port_of_the_brokers_is_known_whatever_the_address() {
        for (url, port) in [
            ("pulsar://broker", 6650),
            ("pulsar+ssl://broker", 6651),
            ("pulsar://broker:7000/", 7000),
            ("pulsar://one:6650,two:6650", 6650),
        ] {
            let settings = Settings {
                pulsar_url: Some(url.to_owned()),
                image: Some("herald:1".to_owned()),
                ..Settings::default()
            };
            assert_eq!(settings.pods().unwrap().pulsar_port, port, "{url}");
        }
    }

    #[test]
    fn the_role_of_a_pod_names_its_service_account() {
        let settings = Settings {
            pulsar_url: Some("pulsar://broker".to_owned()),
            image: Some("herald:1".to_owned()),
            pulsar_pod_auth: Some(PodAuth::ServiceAccount),
            ..Settings::default()
        };
        let role = settings
            .pods()
            .unwrap()
            .role_of("shop", "mail", "herald-mail");
        let expected = "system:serviceaccount:shop:herald-mail";
        assert_eq!(role.as_deref(), Some(expected));
    }
}
