//! How fast a gateway hands one notification to a very large group to the broker.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::TryStreamExt as _;
use herald_crds::{Priority, names};
use herald_dispatcher::broker::Broker;
use herald_dispatcher::catalog::folder::FolderCatalog;
use herald_dispatcher::deliver::worker::Guards;
use herald_dispatcher::message::{self, Bundle};
use herald_dispatcher::metrics::{ChannelClass, Metrics};
use herald_dispatcher::pipeline::{self, Pipeline};
use herald_dispatcher::provider;
use herald_dispatcher::store::postgres::{self, PostgresStore};
use herald_dispatcher::timing::Timing;
use herald_operator::pulsar_admin::TopicName;
use pulsar::SubType;
use serde_json::{Value, json};

use super::{AT_A_TIME, PREFETCH, RAW, TEXT, channel, topic};
use crate::bench::report::{Section, per_second};
use crate::bench::{Options, process};
use crate::cluster::load::GROUP;
use crate::cluster::{Channel, Cluster, Gateway, NAMESPACE, Setup};

const CHANNELS: &[Channel] = &[channel("mail", None), RAW];

const CLASS: Priority = Priority::Low;

/// How long nothing may happen.
const PATIENCE: Duration = Duration::from_mins(1);

/// Measures.
pub async fn measure(options: &Options) -> Result<Section> {
    let mut section = options.begin(
        "fanout",
        "A gateway: fanning out to a million, on PostgreSQL and Pulsar",
        "One notification to a group of 1,000,000 in the directory, with a text of 400 bytes that names the recipient. The \
         channel is suspended until all rows are written; then the stages of a gateway release them, with the pace lifted: \
         nobody delivers, and nothing waits for that. From the first delivery to the last in the broker, where all are read \
         and counted afterwards. Raw: the same client publishes messages of a bundle's size, 1,000 without a receipt at any \
         time. Both servers wait for the disk and share the machine.",
    );
    let count = options.size;
    let folder = tempfile::tempdir_in(crate::bench::place()?)?;
    let setup = Setup {
        channels: CHANNELS,
        templates: templates(),
        horizon: Duration::from_mins(2),
        window: 64,
        sync: true,
        broker: Vec::new(),
    };
    let cluster = Cluster::start(setup, folder.path()).await?;
    suspend(&cluster, true)?;
    let gateway = cluster.gateway("gateway").await?;
    cluster.import(&gateway.api, GROUP, count).await?;
    let planned = plan(&cluster, gateway, count).await?;
    suspend(&cluster, false)?;
    let released = release(&cluster, count).await?;
    let (bundles, bytes) = read(&cluster, count).await?;

    let raw = super::raw(&cluster, &topic("raw", CLASS)).await?;
    let began = Instant::now();
    Box::pin(raw.publish(bundles, bytes / bundles, AT_A_TIME)).await?;
    let raw_rate = count as f64 / began.elapsed().as_secs_f64();

    let rate = count as f64 / planned.as_secs_f64();
    section.told("planned: rows written", per_second(rate), String::new());
    let rate = count as f64 / released.took.as_secs_f64();
    section.at_least(
        "released: from rows to the broker",
        (rate, per_second(rate)),
        format!(
            "{} ({:.0} %)",
            per_second(raw_rate),
            rate / raw_rate * 100.0
        ),
        (50_000.0, "50,000/s"),
    );
    for (whose, seconds) in [
        ("Herald's", released.herald),
        ("PostgreSQL's", released.database),
        ("Pulsar's", released.broker),
    ] {
        section.told(
            &format!("processor time of one released, {whose}"),
            format!("{:.0} µs", seconds * 1e6 / count as f64),
            String::new(),
        );
    }
    Ok(section)
}

/// The group, and what is said to it.
fn templates() -> String {
    let known = "Yours, {{ recipient.id }}";
    // An id is seven characters long.
    let filling = "x".repeat(TEXT - "Yours, p000000".len());
    format!(
        "apiVersion: herald.dev/v1alpha1\n\
         kind: RecipientGroup\n\
         metadata: {{name: {GROUP}, namespace: {NAMESPACE}}}\n\
         spec: {{managed: true}}\n\
         ---\n\
         apiVersion: herald.dev/v1alpha1\n\
         kind: NotificationTemplate\n\
         metadata: {{name: news, namespace: {NAMESPACE}}}\n\
         spec:\n  \
           category: news\n  \
           priority: {CLASS}\n  \
           routing: {{channels: [{{name: {channel}}}]}}\n  \
           content: {{email: {{subject: News, text: \"{filling}{known}\"}}}}\n",
        channel = CHANNELS[0].name,
    )
}

/// Suspends the channel, or lets it go on: for those who start afterwards.
fn suspend(cluster: &Cluster, suspended: bool) -> Result<()> {
    let path = cluster
        .folder
        .join(format!("declared/{}.yaml", CHANNELS[0].name));
    let declared = std::fs::read_to_string(&path)?;
    let [on, off] = ["spec:\n  suspend: true\n", "spec:\n"];
    let (from, to) = if suspended { (off, on) } else { (on, off) };
    ensure!(declared.contains(from), "{} is another", path.display());
    Ok(std::fs::write(path, declared.replacen(from, to, 1))?)
}

/// How long a gateway takes to write the rows. It is gone afterwards.
async fn plan(cluster: &Cluster, mut gateway: Gateway, count: usize) -> Result<Duration> {
    let body = json!({
        "template": "news",
        "recipients": [{"group": GROUP}],
        "confirmRecipients": count,
    });
    let path = format!("/v1/namespaces/{NAMESPACE}/notifications");
    let answer = gateway.api.post(&path).json(&body).send().await?;
    let status = answer.status();
    let words = answer.text().await?;
    ensure!(status.as_u16() == 202, "it was answered {status}: {words}");
    let accepted: Value = serde_json::from_str(&words)?;
    let began = Instant::now();
    let mut last = (0.0, Instant::now());
    while last.0 < count as f64 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let metrics = gateway.probes.metrics().await?;
        let planned = *metrics.get("herald_planned_total").unwrap_or(&0.0);
        if planned > last.0 {
            last = (planned, Instant::now());
        }
        ensure!(
            last.1.elapsed() < PATIENCE,
            "only {planned} of {count} rows of {accepted} were written: {}",
            cluster.log(&gateway.name).display()
        );
    }
    gateway.end(PATIENCE).await?;
    Ok(last.1 - began)
}

/// What releasing took, in all.
struct Released {
    /// From the first delivery to the last.
    took: Duration,
    /// This program's processor time, in seconds: that of the stages.
    herald: f64,
    /// The database's.
    database: f64,
    /// The broker's.
    broker: f64,
}

/// Lets the stages of a gateway release everything that waits, with the pace lifted.
async fn release(cluster: &Cluster, count: usize) -> Result<Released> {
    let environment = &cluster.environment;
    let processes = [
        environment.postgres()?.process(),
        environment.pulsar()?.process(),
    ];
    let [Some(database), Some(pulsar)] = processes else {
        anyhow::bail!("the servers are not this program's");
    };
    let used = || {
        anyhow::Ok([
            process::processor_time(std::process::id())?,
            process::processor_time_with_children(database)?,
            process::processor_time_with_children(pulsar)?,
        ])
    };
    let store = PostgresStore::open(postgres::Options::new(environment.postgres()?.url())).await?;
    let store = Arc::new(store);
    let metrics = Arc::<Metrics>::default();
    let catalog = FolderCatalog::open(cluster.folder.join("declared"), NAMESPACE)?;
    let channel = format!("{NAMESPACE}/{}", CHANNELS[0].name);
    let labels = ChannelClass {
        channel: channel.clone(),
        priority: CLASS.as_str(),
    };
    let handed_over = metrics.fanned_out.get_or_create_owned(&labels);
    let before = used()?;
    let pipeline = Pipeline::start_without_workers(&pipeline::Parts {
        broker: Arc::new(super::broker(cluster)?) as Arc<dyn Broker>,
        store: Arc::clone(&store) as _,
        catalog: Arc::new(catalog),
        providers: provider::makers(cluster.folder.join("credentials"), false),
        metrics: Arc::clone(&metrics),
        timing: Timing {
            pace: Duration::MAX,
            ..Timing::default()
        },
        window: 64,
        guards: Guards::default(),
    });
    let mut began = None;
    let mut last = (0, Instant::now());
    while last.0 < count as u64 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let now = handed_over.get();
        if now > last.0 {
            last = (now, Instant::now());
            began.get_or_insert(last.1);
        }
        ensure!(
            last.1.elapsed() < PATIENCE,
            "only {now} of {count} were released"
        );
    }
    // The last are on their way to the broker.
    let admin = environment.pulsar()?.admin()?;
    let topic = names::deliveries(&channel, CLASS);
    let name = TopicName::new(cluster.tenant(), &topic);
    let least = count.div_ceil(Bundle::MAX_DELIVERIES) as u64;
    while admin
        .stats(&name)
        .await?
        .is_none_or(|stats| stats.msg_in_counter < least)
    {
        ensure!(
            last.1.elapsed() < PATIENCE,
            "the broker has less than was released"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let took = began.context("nothing was released")?.elapsed();
    let after = used()?;
    pipeline.stop().await;
    store.close().await;
    let [herald, database, broker] = std::array::from_fn(|which| after[which] - before[which]);
    Ok(Released {
        took,
        herald,
        database,
        broker,
    })
}

/// Reads what is in the broker: how many bundles, and their bytes. An error unless every delivery is there.
async fn read(cluster: &Cluster, count: usize) -> Result<(usize, usize)> {
    let raw = super::raw(cluster, &topic(CHANNELS[0].name, CLASS)).await?;
    let mut consumer = raw.consumer(SubType::KeyShared, PREFETCH).await?;
    let mut found = HashSet::with_capacity(count);
    let (mut bundles, mut bytes) = (0, 0);
    while found.len() < count {
        let next = tokio::time::timeout(PATIENCE, consumer.try_next()).await;
        let next = next.with_context(|| format!("{} of {count} are there", found.len()))?;
        let message = next?.context("the consumer ended")?;
        consumer.ack(&message).await?;
        let payload = &message.payload.data;
        let bundle: Bundle = message::decode(payload)?;
        found.extend(bundle.deliveries.iter().map(|delivery| delivery.id));
        bundles += 1;
        bytes += payload.len();
    }
    Ok((bundles, bytes))
}
