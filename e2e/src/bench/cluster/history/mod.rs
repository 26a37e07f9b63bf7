//! History on PostgreSQL: what it takes to record what became of deliveries, and to say how one of millions is.

mod out;
mod recording;
mod status;

use std::collections::BTreeMap;

use anyhow::Result;
use herald_crds::Priority;
use herald_dispatcher::id::NotificationId;
use herald_dispatcher::message::{Request, SystemState, To};
use herald_dispatcher::store::postgres::{Options as Access, PostgresStore};
use jiff::Timestamp;
use serde_json::value::RawValue;
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;

use super::channel;
use crate::bench::Options;
use crate::bench::report::Section;
use crate::cluster::{Channel, NAMESPACE};

const CHANNELS: &[Channel] = &[channel("mail", None)];

/// The channel's full name.
const CHANNEL: &str = "load/mail";

/// Measures.
pub async fn measure(options: &Options) -> Result<Section> {
    let mut section = options.begin(
        "history",
        "History: recording, and the status of one delivery, on PostgreSQL",
        "Recording: deliveries of one notification are planned and released; then their events are recorded, 5,000 at a time, \
         as a gateway does. Raw: the rows as they are afterwards are taken away and copied (`COPY`) into the same tables \
         again, with the same indexes, 5,000 in a transaction. Status: of deliveries that ended in the last seven days, in \
         partitions of a day each, at random; by the store, and over HTTP from a gateway. Raw: the row by its primary key, \
         over connections of their own. PostgreSQL has the settings it comes with, and waits for the disk.",
    );
    let folder = tempfile::tempdir_in(crate::bench::place()?)?;
    let cluster = super::start(CHANNELS, 64, true, folder.path()).await?;
    let url = &cluster.access().database;
    let store = PostgresStore::open(Access::new(url)).await?;
    recording::measure(options, &mut section, &store, url).await?;
    status::measure(options, &mut section, &cluster, &store).await?;
    store.close().await;
    Ok(section)
}

/// A notification to everybody.
fn request(key: &str, accepted_at: Timestamp) -> Result<Request> {
    Ok(Request {
        id: NotificationId::from_key(NAMESPACE, "bench", key),
        namespace: NAMESPACE.into(),
        sender: "bench".into(),
        body: "sha256:0123456789abcdef".into(),
        template: "note-mail".into(),
        definition: "sha256:1".into(),
        groups: None,
        priority: Priority::Normal,
        recipients: vec![To::Group(format!("{NAMESPACE}/everybody").into())],
        parameters: RawValue::from_string(r#"{"number":1}"#.to_owned())?,
        sensitive: false,
        channels: Vec::new(),
        accepted_at,
        send_at: None,
        expires_at: None,
        spread_over_seconds: 0,
        confirm_recipients: None,
        metadata: BTreeMap::new(),
        traceparent: None,
        system: SystemState::default(),
    })
}

async fn execute(connection: &mut PgConnection, statement: String) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(statement))
        .execute(connection)
        .await?;
    Ok(())
}

/// Copies rows, one a line, into a table or some of its columns.
async fn copy(connection: &mut PgConnection, into: &str, lines: Vec<u8>) -> Result<()> {
    let mut copying = connection
        .copy_in_raw(&format!("COPY {into} FROM STDIN"))
        .await?;
    copying.send(lines).await?;
    copying.finish().await?;
    Ok(())
}
