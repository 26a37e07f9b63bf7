//! How the servers are set up: by flags, the environment and a file, in this order of precedence.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::accept::{Quotas, Rate};
use crate::access::Callers;
use crate::broker::pulsar::{self, Token};
use crate::catalog::{Place, yaml};
use crate::pipeline;
use crate::store::postgres;
use crate::timing::Timing;

/// Everything that can be set. What is not set has a usual value, or is missed by the role that needs it.
#[derive(Debug, Clone, Default, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// A YAML file with any of these settings, in camelCase.
    #[arg(long, env = "HERALD_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Prints the settings in force and ends; secrets are left out.
    #[arg(long)]
    #[serde(skip)]
    pub print_config: bool,
    /// The address of the brokers, pulsar://… or pulsar+ssl://…
    #[arg(long, env = "HERALD_PULSAR_URL", value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pulsar_url: Option<String>,
    /// The tenant in which all topics are [default: herald]
    #[arg(long, env = "HERALD_PULSAR_TENANT", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pulsar_tenant: Option<String>,
    /// A file with the token for Pulsar, read again whenever the broker asks.
    #[arg(long, env = "HERALD_PULSAR_TOKEN_FILE", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pulsar_token_file: Option<PathBuf>,
    /// PEM certificates to trust beside the usual ones.
    #[arg(long, env = "HERALD_PULSAR_CA_FILE", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pulsar_ca_file: Option<PathBuf>,
    /// Where /livez, /readyz and /metrics are served [default: 0.0.0.0:9090]
    #[arg(long, env = "HERALD_PROBES", value_name = "ADDRESS:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probes: Option<SocketAddr>,
    /// Most deliveries sent whose outcome has no receipt yet [default: 64]
    #[arg(long, env = "HERALD_WINDOW", value_name = "NUMBER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// How long settled deliveries are remembered, and how old one that is sent may be [default: 900]
    #[arg(long, env = "HERALD_HORIZON_SECONDS", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub horizon_seconds: Option<u32>,
    /// How long shutting down may take [default: 25]
    #[arg(long, env = "HERALD_DRAIN_SECONDS", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_seconds: Option<u32>,
    /// Whether a Channel's allowPrivateAddresses counts [default: false]
    #[arg(
        long,
        env = "HERALD_ALLOW_PRIVATE_ADDRESSES",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_private_addresses: Option<bool>,
    /// The namespace of resources that name none [default: default]
    #[arg(long, env = "HERALD_NAMESPACE", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// deliver: the Channel, a YAML file.
    #[arg(long, env = "HERALD_CHANNEL", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel: Option<PathBuf>,
    /// Credentials of providers, NAME/KEY in this folder, read again when they change.
    #[arg(long, env = "HERALD_CREDENTIALS", value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<PathBuf>,
    /// deliver: what this pod is called; something random is added.
    #[arg(long, env = "HERALD_POD", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// gateway: where what is declared comes from, the cluster that it runs in or a folder of YAML.
    #[arg(long, env = "HERALD_CATALOG", value_name = "kubernetes|DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub catalog: Option<Place>,
    /// gateway: the namespaces of the cluster whose resources count [default: all]
    #[arg(
        long,
        env = "HERALD_WATCH_NAMESPACES",
        value_name = "NAME",
        value_delimiter = ','
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub watch_namespaces: Vec<String>,
    /// gateway: who may call [default: kubernetes with --catalog kubernetes, else keys]
    #[arg(long, env = "HERALD_CALLERS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub callers: Option<Callers>,
    /// gateway: the audience that tokens of callers must have [default: herald]
    #[arg(long, env = "HERALD_AUDIENCE", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
    /// gateway: notifications a second that one sender may send in a namespace [default: 5000]
    #[arg(long, env = "HERALD_SENDER_RATE", value_name = "NUMBER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender_rate: Option<NonZeroU32>,
    /// gateway: notifications a second that all senders of a namespace may send [default: 10000]
    #[arg(long, env = "HERALD_NAMESPACE_RATE", value_name = "NUMBER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_rate: Option<NonZeroU32>,
    /// gateway: the database, postgres://user:password@host:port/name
    #[arg(
        long,
        env = "HERALD_DATABASE_URL",
        value_name = "URL",
        hide_env_values = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database_url: Option<String>,
    /// gateway: PEM certificates of those who may have signed the database's; demands TLS and the right name.
    #[arg(long, env = "HERALD_DATABASE_CA_FILE", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database_ca_file: Option<PathBuf>,
    /// gateway: where the API is served [default: 0.0.0.0:8080]
    #[arg(long, env = "HERALD_LISTEN", value_name = "ADDRESS:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// gateway: an API key that may do everything.
    #[arg(long, env = "HERALD_API_KEY", hide_env_values = true, hide = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key: Option<String>,
}

/// A setting that is missing or wrong.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("config: cannot read {path}: {source}")]
    Read {
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
    /// A setting that the role needs.
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

/// What is needed, or what to say about what is missing.
pub(super) fn need<'a, T: ?Sized>(
    value: Option<&'a T>,
    setting: &'static str,
    flag: &'static str,
    variable: &'static str,
) -> Result<&'a T, SettingsError> {
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
        let bytes = std::fs::read(&path).map_err(|source| SettingsError::Read {
            path: path.clone(),
            source,
        })?;
        self.over(&path, &bytes)
    }

    fn over(self, path: &Path, file: &[u8]) -> Result<Self, SettingsError> {
        let wrong = |reason: String| SettingsError::Parse {
            path: path.to_owned(),
            reason,
        };
        let mut documents = yaml::read(file).map_err(|error| wrong(error.to_string()))?;
        let mut merged = match documents.pop().map(|document| document.value) {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(settings)) if documents.is_empty() => settings,
            Some(_) => return Err(wrong("it must be one mapping of settings".to_owned())),
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

    /// What is set, as it could stand in the file. What is secret is only said to be set.
    pub fn print(&self) -> String {
        let mut shown = self.clone();
        shown.api_key = shown.api_key.map(|_| "(hidden)".to_owned());
        // A password in the address of a database is one, too.
        shown.database_url = shown.database_url.map(|url| match url.split_once("://") {
            Some((scheme, rest)) => match rest.rsplit_once('@') {
                Some((_, place)) => format!("{scheme}://(hidden)@{place}"),
                None => url,
            },
            None => url,
        });
        serde_json::to_string_pretty(&shown).unwrap_or_default()
    }

    /// Where Pulsar is, and as whom to speak to it.
    pub fn pulsar(&self) -> Result<pulsar::Settings, SettingsError> {
        let url = need(
            self.pulsar_url.as_deref(),
            "pulsarUrl",
            "pulsar-url",
            "HERALD_PULSAR_URL",
        )?;
        if !url.starts_with("pulsar://") && !url.starts_with("pulsar+ssl://") {
            return Err(SettingsError::Check {
                setting: "pulsarUrl",
                reason: format!("{url:?} must begin with pulsar:// or pulsar+ssl://"),
            });
        }
        let token = self.pulsar_token_file.clone();
        Ok(pulsar::Settings {
            url: url.to_owned(),
            tenant: self
                .pulsar_tenant
                .clone()
                .unwrap_or_else(|| "herald".to_owned()),
            token: token.map_or(Token::None, Token::File),
            ca: self.pulsar_ca_file.clone(),
            operation_timeout: Duration::from_secs(8),
        })
    }

    /// Where the database is.
    pub fn database(&self) -> Result<postgres::Options, SettingsError> {
        let url = need(
            self.database_url.as_deref(),
            "databaseUrl",
            "database-url",
            "HERALD_DATABASE_URL",
        )?;
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            // Not the address itself: it may hold a password.
            return Err(SettingsError::Check {
                setting: "databaseUrl",
                reason: "it must begin with postgres://".to_owned(),
            });
        }
        Ok(postgres::Options {
            ca: self.database_ca_file.clone(),
            ..postgres::Options::new(url)
        })
    }

    /// The times kept.
    pub fn timing(&self) -> Timing {
        let usual = Timing::default();
        let seconds = |set: Option<u32>, usual: Duration| {
            set.map_or(usual, |seconds| {
                Duration::from_secs(u64::from(seconds.max(1)))
            })
        };
        Timing {
            horizon: seconds(self.horizon_seconds, usual.horizon),
            drain: seconds(self.drain_seconds, usual.drain),
            ..usual
        }
    }

    /// W.
    pub fn window(&self) -> usize {
        self.window.unwrap_or(pipeline::WINDOW).clamp(1, 65_536)
    }

    /// Where health and metrics are served.
    pub fn probes(&self) -> SocketAddr {
        let usual = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 9090));
        self.probes.unwrap_or(usual)
    }

    /// Where the API is served.
    pub fn listen(&self) -> SocketAddr {
        let usual = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8080));
        self.listen.unwrap_or(usual)
    }

    /// Where what is declared comes from.
    pub fn catalog(&self) -> Result<&Place, SettingsError> {
        need(
            self.catalog.as_ref(),
            "catalog",
            "catalog",
            "HERALD_CATALOG",
        )
    }

    /// Who may call.
    pub fn callers(&self) -> Callers {
        self.callers.unwrap_or(match self.catalog {
            Some(Place::Kubernetes) => Callers::Kubernetes,
            _ => Callers::Keys,
        })
    }

    /// How fast may be sent; twice as many at once.
    pub fn quotas(&self) -> Quotas {
        let usual = Quotas::default();
        let rate = |set: Option<NonZeroU32>, usual| set.map_or(usual, |set| Rate::new(set.get()));
        Quotas {
            sender: rate(self.sender_rate, usual.sender),
            namespace: rate(self.namespace_rate, usual.namespace),
        }
    }

    /// The namespace of resources that name none.
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("default")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_stands_over_the_file_and_the_file_over_what_is_usual() {
        let given = Settings {
            window: Some(7),
            ..Settings::default()
        };
        let file = b"window: 9\npulsarUrl: pulsar://broker:6650\nprobes: 127.0.0.1:1\n";
        let merged = given.over(Path::new("herald.yaml"), file).unwrap();
        assert_eq!(merged.window(), 7);
        assert_eq!(merged.pulsar().unwrap().url, "pulsar://broker:6650");
        assert_eq!(merged.probes().port(), 1);
        assert_eq!(merged.timing(), Timing::default());
    }

    #[test]
    fn what_is_wrong_is_said_with_the_name_of_the_setting() {
        let over = |file: &str| {
            let read = Settings::default().over(Path::new("herald.yaml"), file.as_bytes());
            read.unwrap_err().to_string()
        };
        assert!(
            over("windows: 9").contains("windows"),
            "{}",
            over("windows: 9")
        );
        assert!(over("window: many").contains("window"));
        assert!(over("- 1").contains("mapping"));
        let missing = Settings::default().pulsar().unwrap_err().to_string();
        assert!(missing.contains("pulsarUrl") && missing.contains("HERALD_PULSAR_URL"));
        let wrong = Settings {
            pulsar_url: Some("http://broker".to_owned()),
            ..Settings::default()
        };
        assert!(
            wrong
                .pulsar()
                .unwrap_err()
                .to_string()
                .contains("pulsarUrl")
        );
    }

    #[test]
    fn callers_are_identities_where_the_catalog_is_the_cluster_unless_set_otherwise() {
        let from = |file: &str| {
            let read = Settings::default().over(Path::new("herald.yaml"), file.as_bytes());
            read.unwrap()
        };
        let cluster = from("catalog: kubernetes\nwatchNamespaces: [shop, office]\nsenderRate: 7");
        assert_eq!(cluster.catalog().unwrap(), &Place::Kubernetes);
        assert_eq!(cluster.callers(), Callers::Kubernetes);
        assert_eq!(cluster.watch_namespaces, ["shop", "office"]);
        assert_eq!(cluster.quotas().sender, Rate::new(7));
        assert_eq!(cluster.quotas().namespace, Quotas::default().namespace);
        assert_eq!(
            from("{catalog: kubernetes, callers: keys}").callers(),
            Callers::Keys
        );
        let folder = from("catalog: shop/");
        assert_eq!(folder.catalog().unwrap(), &Place::Folder("shop/".into()));
        assert_eq!(folder.callers(), Callers::Keys);
    }

    #[test]
    fn secrets_are_not_printed() {
        let settings = Settings {
            api_key: Some("hk_1".to_owned()),
            database_url: Some("postgres://herald:pass@db/herald".to_owned()),
            ..Settings::default()
        };
        let printed = settings.print();
        assert!(printed.contains("@db/herald"));
        for secret in ["hk_1", "pass"] {
            assert!(!printed.contains(secret), "{printed}");
        }
    }
}
