//! What is not as it should be: addresses, tokens, grants and topics, which can be mended while a process runs; and
//! settings and schemas, with which none starts.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use herald_crds::names;
use herald_operator::pulsar_admin::Action;
use tokio::net::{TcpListener, TcpStream};

use super::witness::{gets_ready, is_up_and_not_ready, says};
use super::{MAIL, Stage, channel};
use crate::cluster::{Access, Channel, Cluster, Gateway, NAMESPACE, Pod};
use crate::process;
use crate::server::KEY;

/// The role of everything.
const ROLE: &str = "herald";

/// A role that nothing is granted to.
const STRANGER: &str = "stranger";

/// A Channel without topics.
const NOWHERE: Channel = channel("nowhere");

/// A password that everybody who writes it down gives away.
const PASSWORD: &str = "s3cr3t-of-the-database";

/// What counts failures of the broker.
const FAILURES: &str = "herald_broker_errors_total";

/// Ways to come to the servers that are wrong.
struct Wrong {
    /// There is nobody at the address.
    url: Access,
    /// The token is somebody else's.
    token: Access,
    /// The token is believed, and nothing is granted to its role.
    grant: Access,
    /// There are no topics.
    topic: Access,
    /// Where nobody is.
    address: SocketAddr,
}

/// All of these plan in a database of their own, and so nothing of anybody else.
async fn wrong_accesses(cluster: &Cluster) -> anyhow::Result<Wrong> {
    let pulsar = cluster.environment.pulsar()?;
    let aside = cluster.environment.postgres()?.database("aside")?;
    let usual = Access {
        database: aside.replace("herald@", &format!("herald:{PASSWORD}@")),
        ..cluster.access().clone()
    };
    let topic = Access {
        tenant: "herald-aside".to_owned(),
        ..usual.clone()
    };
    let admin = pulsar.admin()?;
    admin
        .create_tenant(&topic.tenant, &admin.clusters().await?)
        .await?;
    let system = format!("{}/{}", topic.tenant, names::SYSTEM_NAMESPACE);
    admin
        .create_namespace(&system, &admin.clusters().await?)
        .await?;
    admin
        .grant(&system, ROLE, &[Action::Produce, Action::Consume])
        .await?;

    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, process::free_port()?));
    let token = Access {
        token: cluster.folder.join("token-wrong"),
        ..topic.clone()
    };
    let good = pulsar.token(ROLE, None);
    let (claims, signature) = good.rsplit_once('.').context("a token has three parts")?;
    let forged: String = signature.chars().rev().collect();
    fs::write(&token.token, format!("{claims}.{forged}"))?;
    let grant = Access {
        token: cluster.folder.join("token-stranger"),
        ..usual
    };
    fs::write(&grant.token, pulsar.token(STRANGER, None))?;
    Ok(Wrong {
        url: Access {
            pulsar: format!("pulsar://{address}"),
            ..topic.clone()
        },
        token,
        grant,
        topic,
        address,
    })
}

/// Mends everything, while it is used. What answers at the address from now on ends with the value.
async fn mend(cluster: &Cluster, wrong: &Wrong) -> anyhow::Result<tokio::task::JoinSet<()>> {
    let pulsar = cluster.environment.pulsar()?;
    let mut forwarding = tokio::task::JoinSet::new();
    let broker = pulsar.service_url().trim_start_matches("pulsar://");
    let listener = TcpListener::bind(wrong.address)
        .await
        .context("the port was taken")?;
    forwarding.spawn(forward(listener, broker.to_owned()));
    fs::write(&wrong.token.token, pulsar.token(ROLE, None))?;
    let admin = pulsar.admin()?;
    let clusters = admin.clusters().await?;
    for (access, role) in [(&wrong.grant, STRANGER), (&wrong.topic, ROLE)] {
        admin
            .provide_requests(&access.tenant, &clusters, 4, Some(role))
            .await?;
    }
    let tenant = &cluster.access().tenant;
    let horizon = Duration::from_mins(2);
    for (channel, role) in [(MAIL, STRANGER), (NOWHERE, ROLE)] {
        let name = format!("{NAMESPACE}/{}", channel.name);
        admin
            .provide_channel(tenant, &clusters, &name, 1, horizon, Some(role))
            .await?;
    }
    Ok(forwarding)
}

/// Each of them is said, keeps a process from being ready and not from being up, and is mended without a restart.
pub(super) async fn addresses_and_grants(stage: &mut Stage) -> anyhow::Result<()> {
    let cluster = &stage.cluster;
    let wrong = wrong_accesses(cluster).await?;
    let grant = "grant-permission persistent://";
    let role = "--role stranger --actions";
    let missing = "does not exist: it is the operator that makes topics";
    let mut all = Vec::new();
    for (name, access, words) in [
        (
            "gateway-url",
            &wrong.url,
            vec!["there is no connection to", "is that the broker's address"],
        ),
        (
            "gateway-token",
            &wrong.token,
            vec!["is the token this cluster's"],
        ),
        (
            "gateway-grant",
            &wrong.grant,
            vec!["may not", grant, "/requests.", role],
        ),
        ("gateway-topic", &wrong.topic, vec!["/requests.", missing]),
    ] {
        let gateway = cluster.begin_gateway(name, access)?;
        all.push((
            name,
            gateway.probes.clone(),
            words,
            Running::Gateway(gateway),
        ));
    }
    for (name, channel, access, words) in [
        (
            "mail-grant",
            MAIL,
            &wrong.grant,
            vec!["may not", grant, "/ch.mail.events", role],
        ),
        (
            "nowhere-a",
            NOWHERE,
            cluster.access(),
            vec!["/ch.nowhere.events", missing],
        ),
    ] {
        let pod = cluster.begin_pod(name, channel, access)?;
        all.push((name, pod.probes.clone(), words, Running::Pod(pod)));
    }
    for (name, probes, words, _) in &all {
        says(&cluster.log(name), words).await?;
        is_up_and_not_ready(probes, FAILURES).await.context(*name)?;
    }
    let forwarding = mend(cluster, &wrong).await?;
    for (name, probes, ..) in &all {
        gets_ready(name, probes).await?;
    }
    drop((all, forwarding));
    stage.shown(
        "wrong address, token, grant, missing topic, gateways and pods: said with what to do, up and not ready, ready once mended",
    );
    Ok(())
}

/// A process, for as long as it is to run.
#[expect(dead_code, reason = "they end with the value")]
enum Running {
    Gateway(Gateway),
    Pod(Pod),
}

/// Passes on what comes to `listener`.
async fn forward(listener: TcpListener, to: String) {
    while let Ok((mut from, _)) = listener.accept().await {
        let to = to.clone();
        tokio::spawn(async move {
            let mut to = TcpStream::connect(to).await?;
            tokio::io::copy_bidirectional(&mut from, &mut to).await
        });
    }
}

/// A flag or a key of the file that does not exist is named, and what is in force can be seen without its secrets.
pub(super) fn settings(stage: &Stage) -> anyhow::Result<()> {
    let file = stage.cluster.folder.join("herald.yaml");
    fs::write(&file, "horizonSecond: 60\n")?;
    let run = |words: &[&str]| -> anyhow::Result<(bool, String)> {
        let output = Command::new(stage.cluster.program())
            .args(words)
            .env("HERALD_API_KEY", KEY)
            .env(
                "HERALD_DATABASE_URL",
                format!("postgres://herald:{PASSWORD}@127.0.0.1:1/herald"),
            )
            .stdin(Stdio::null())
            .output()
            .context("cannot run the servers' program")?;
        let said = [output.stdout, output.stderr].concat();
        Ok((
            output.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        ))
    };
    let path = file.display().to_string();
    for (words, expected) in [
        (
            &["gateway", "--horizon-second", "60"][..],
            "--horizon-second",
        ),
        (&["deliver", "--config", &path], "horizonSecond"),
        (&["gateway"], "--pulsar-url"),
        (&["gateway", "--pulsar-url", "http://broker"], "pulsar://"),
    ] {
        let (went_well, said) = run(words)?;
        ensure!(
            !went_well && said.contains(expected),
            "{words:?} said: {said}"
        );
        ensure!(!said.contains(PASSWORD), "the password was shown: {said}");
    }
    fs::write(&file, "horizonSeconds: 60\n")?;
    let (went_well, said) = run(&["gateway", "--config", &path, "--print-config"])?;
    ensure!(
        went_well && said.contains("\"horizonSeconds\": 60"),
        "--print-config: {said}"
    );
    ensure!(
        !said.contains(PASSWORD) && !said.contains(KEY),
        "--print-config shows secrets: {said}"
    );
    stage.shown("flags and settings that do not exist, or are missing, are named; --print-config hides secrets");
    Ok(())
}

/// A database that is newer than the program.
pub(super) async fn schemas(stage: &Stage) -> anyhow::Result<()> {
    let postgres = stage.cluster.environment.postgres()?;
    let database = postgres.database("newer")?;
    let access = Access {
        database: database.clone(),
        ..stage.cluster.access().clone()
    };
    // Empty: there is nothing older.
    let mut gateway = stage.cluster.begin_gateway("gateway-schema", &access)?;
    gets_ready("gateway-schema", &gateway.probes).await?;
    gateway.end(Duration::from_secs(30)).await?;
    postgres.ask(
        &database,
        "UPDATE herald_schema SET version = 99, oldest = 98",
    )?;
    let mut refused = stage.cluster.begin_gateway("gateway-refused", &access)?;
    let status = refused.ended(Duration::from_secs(30)).await?;
    ensure!(
        !status.success(),
        "it runs on a schema that does not support it"
    );
    says(
        &stage.cluster.log("gateway-refused"),
        &[
            "databaseUrl",
            "schema has version 99",
            "98 or later",
            "use a newer program",
        ],
    )
    .await?;
    postgres.ask(&database, "UPDATE herald_schema SET oldest = 1")?;
    let mut supported = stage.cluster.begin_gateway("gateway-supported", &access)?;
    gets_ready("gateway-supported", &supported.probes).await?;
    supported.end(Duration::from_secs(30)).await?;
    stage.shown("a database: empty, it is given the schema; newer, it is refused by a clear line, or used if it supports this program");
    Ok(())
}

/// No log holds a key, a token or a password.
pub(super) fn secrets(stage: &Stage) -> anyhow::Result<()> {
    let mut secrets = vec![KEY.to_owned(), PASSWORD.to_owned()];
    let mut logs = Vec::new();
    for entry in fs::read_dir(&stage.cluster.folder).context("cannot list the logs")? {
        let path = entry.context("cannot list the logs")?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name.starts_with("token") {
            let token = fs::read_to_string(&path)?;
            // What is secret of it is its signature.
            secrets.extend(
                token
                    .rsplit_once('.')
                    .map(|(_, signature)| signature.to_owned()),
            );
        } else if path.extension().is_some_and(|extension| extension == "log") {
            logs.push(path);
        }
    }
    for log in &logs {
        let text = fs::read(log).with_context(|| format!("cannot read {}", log.display()))?;
        let text = String::from_utf8_lossy(&text);
        let found = secrets.iter().any(|secret| text.contains(secret.as_str()));
        ensure!(!found, "{} holds a secret", log.display());
    }
    stage.shown(&format!(
        "no key, token or password is in any of {} logs",
        logs.len()
    ));
    Ok(())
}
