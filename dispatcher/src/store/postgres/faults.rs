//! What a real server does to a store: it is killed, its disk is full, its certificate is checked, its patience ends.

use std::collections::BTreeMap;
use std::process::Command;

use herald_crds::Priority;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::sync::mpsc;

use super::server::{Own, is_root, run};
use super::tests::open;
use super::*;
use crate::message::Events;
use crate::store::contract::stages::{MAIL, at, event, planned, request, rows, sent, settled};
use crate::store::{
    Cursor, HistoryStore, NewDelivery, PlanStore, RecordStore, ResolveStep, State, Turn, Waiting,
    WaitingStore,
};

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(180);

/// What survives that a process of the server is killed.
const SURVIVES: [&str; 3] = ["fsync=off", "full_page_writes=off", "max_connections=50"];

/// Rows that one step of planning writes.
const STEP: usize = 100;

fn options(own: &Own) -> Options {
    Options {
        patience: Duration::from_millis(500),
        ..Options::new(own.url())
    }
}

/// Repeats a call until the database is there.
async fn insist<T>(call: impl AsyncFn() -> Result<T, StoreError>) -> T {
    loop {
        match call().await {
            Ok(answer) => return answer,
            Err(StoreError::Unavailable { .. }) => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(other) => panic!("{other}"),
        }
    }
}

/// Writes the rows of a notification, step by step; goes on where it was when the database comes back.
async fn plan(store: &PostgresStore, of: &[NewDelivery]) {
    let request = Arc::new(request("1"));
    insist(async || {
        store
            .insert_notifications(&[], &[Arc::clone(&request)])
            .await
    })
    .await;
    let steps = of.len() / STEP;
    let cursor = |step: usize| Cursor {
        source: 0,
        after: (step > 0).then(|| (step as u32, String::new())),
    };
    for (place, rows) in of.chunks(STEP).enumerate() {
        // A step that was taken, but for the answer, is not taken again.
        insist(async || {
            let step = ResolveStep {
                notification: request.id,
                from: cursor(place),
                next: (place + 1 < steps).then(|| cursor(place + 1)),
                rows: rows.to_vec(),
            };
            store.resolve(vec![step], at(0)).await
        })
        .await;
    }
}

/// Releases until all have ended, as a gateway does: what was handed over may be handed over again.
async fn release_all(store: &PostgresStore, n: u64, handed_over: mpsc::Sender<Vec<Waiting>>) {
    let mut turn = Turn::default();
    loop {
        let (chunk, next) = insist(async || {
            let chunk = store.chunk(MAIL, Priority::Normal, &turn, 50).await?;
            let left: Vec<_> = chunk
                .rows
                .iter()
                .map(|w| (w.row, w.round, w.attempt))
                .collect();
            if !chunk.rows.is_empty() {
                handed_over.send(chunk.rows.clone()).await.unwrap();
            }
            chunk.hold.settle(&left, &[], &[], at(0)).await?;
            Ok((chunk.rows, chunk.next))
        })
        .await;
        turn = next;
        if chunk.is_empty() {
            let record = insist(async || store.notification("shop", &request("1").id).await).await;
            if record.is_some_and(|record| record.counts == BTreeMap::from([(State::Sent, n)])) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn record_all(store: &PostgresStore, mut handed_over: mpsc::Receiver<Vec<Waiting>>) {
    while let Some(out) = handed_over.recv().await {
        let outcomes = out.iter().map(|row| event(row, 1, 10, sent())).collect();
        let events = [Events {
            outcomes,
            ..Events::default()
        }];
        insist(async || store.record(MAIL, &events).await).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_while_the_database_is_killed_again_and_again() {
    let own = Own::new(&SURVIVES);
    drop(own.answers().await);
    let store = PostgresStore::open(options(&own)).await.unwrap();
    let rows = rows(&request("1").id, 3_000);
    let (handed_over, received) = mpsc::channel(4);
    let at_work = async {
        tokio::join!(
            plan(&store, &rows),
            release_all(&store, rows.len() as u64, handed_over),
            record_all(&store, received),
        )
    };
    let killing = async {
        for _ in 0..4 {
            let before = insist(async || store.unended().await).await;
            // Something has moved, so that each life does some of the work.
            while insist(async || store.unended().await).await == before {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            own.kill();
            own.start();
            drop(own.answers().await);
        }
    };
    tokio::time::timeout(PATIENCE, async {
        tokio::pin!(at_work);
        tokio::select! {
            _ = &mut at_work => return,
            () = killing => {}
        }
        at_work.await;
    })
    .await
    .expect("it does not come to an end");
    assert_eq!(store.unended().await.unwrap(), (0, 0));
    store.close().await;
}

#[tokio::test]
async fn a_gateway_that_hangs_with_a_chunk_loses_it_and_is_told_so() {
    let opened = open().await;
    let options = Options {
        held: Duration::from_secs(2),
        ..opened.database.options()
    };
    let hangs = PostgresStore::open(options).await.unwrap();
    let request = request("1");
    planned(&opened.store, &request, &rows(&request.id, 5)).await;
    let class = Priority::Normal;
    let chunk = hangs.chunk(MAIL, class, &Turn::default(), 5).await.unwrap();
    let others = async {
        loop {
            let turn = Turn::default();
            let chunk = opened.store.chunk(MAIL, class, &turn, 5).await.unwrap();
            if !chunk.rows.is_empty() {
                return settled(chunk, at(0)).await.0.len();
            }
        }
    };
    assert_eq!(tokio::time::timeout(PATIENCE, others).await.unwrap(), 5);
    let left: Vec<_> = chunk.rows.iter().map(|row| (row.row, 0, 1)).collect();
    let late = chunk.hold.settle(&left, &[], &[], at(1)).await;
    assert!(matches!(late, Err(StoreError::Unavailable { .. })));
    assert_eq!(opened.store.unended().await.unwrap(), (0, 5));
}

/// A certificate authority of the tests' own.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

fn authority() -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    Authority {
        issuer: Issuer::new(params, key),
        pem,
    }
}

/// Opens the store once the server has started.
async fn opened(options: &Options) -> PostgresStore {
    let begun = std::time::Instant::now();
    loop {
        match PostgresStore::open(options.clone()).await {
            Ok(store) => return store,
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[tokio::test]
async fn a_database_is_spoken_to_only_if_its_certificate_is_of_the_given_authority_and_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (ours, theirs) = (authority(), authority());
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = certificate.signed_by(&key, &ours.issuer).unwrap();
    let texts = [
        ("ca.pem", ours.pem),
        ("other.pem", theirs.pem),
        ("server.pem", certificate.pem()),
        ("server.key", key.serialize_pem()),
        (
            "hba",
            "local all all trust\nhostssl all all 127.0.0.1/32 trust\n".to_owned(),
        ),
    ];
    for (name, text) in texts {
        std::fs::write(path(name), text).unwrap();
    }
    let shown = folder.path().display().to_string();
    run("chmod", &["go-rwx", &format!("{shown}/server.key")]);
    if is_root() {
        run("chown", &["-R", "postgres", &shown]);
    }
    let port = free_port();
    let settings = [
        "fsync=off".to_owned(),
        "ssl=on".to_owned(),
        "listen_addresses=127.0.0.1".to_owned(),
        format!("port={port}"),
        format!("hba_file={shown}/hba"),
        format!("ssl_cert_file={shown}/server.pem"),
        format!("ssl_key_file={shown}/server.key"),
    ];
    let _server = Own::new(&settings.each_ref().map(String::as_str));

    let url = |host: &str| format!("postgres://herald@{host}:{port}/postgres");
    let with = |host: &str, ca: &str| Options {
        ca: Some(path(ca)),
        ..Options::new(url(host))
    };
    let by_url = format!(
        "{}?sslmode=verify-full&sslrootcert={shown}/ca.pem",
        url("localhost")
    );
    for options in [with("localhost", "ca.pem"), Options::new(by_url)] {
        let store = opened(&options).await;
        let encrypted: bool =
            sqlx::query_scalar("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
                .fetch_one(&store.pool)
                .await
                .unwrap();
        assert!(encrypted);
        store.close().await;
    }
    for (host, ca) in [("localhost", "other.pem"), ("127.0.0.1", "ca.pem")] {
        let refused = PostgresStore::open(with(host, ca)).await.err().unwrap();
        let StoreError::Open { reason, .. } = refused else {
            panic!("{refused}")
        };
        assert!(reason.contains("certificate"), "{reason}");
    }
}

/// A small disk, for as long as the test runs.
struct Disk(PathBuf);

impl Disk {
    /// `None`: this user may not mount.
    fn new(own: &Own) -> Option<Self> {
        let folder = own.folder().join("disk");
        std::fs::create_dir(&folder).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=48m", "tmpfs"])
            .arg(&folder)
            .output()
            .is_ok_and(|done| done.status.success());
        if !mounted {
            return None;
        }
        run("chown", &["postgres", &folder.display().to_string()]);
        Some(Self(folder))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily, since the server may have files open: nothing is lost with it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[tokio::test]
async fn a_full_disk_is_unavailable_and_what_was_refused_succeeds_once_there_is_room() {
    let own = Own::new(&SURVIVES);
    let mut admin = own.answers().await;
    let Some(disk) = Disk::new(&own) else {
        eprintln!("skipped: only root may mount the small disk that this needs");
        return;
    };
    let place = disk.0.display();
    for statement in [
        format!("CREATE TABLESPACE small LOCATION '{place}'"),
        "CREATE DATABASE herald TABLESPACE small".to_owned(),
    ] {
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement))
            .execute(&mut admin)
            .await
            .unwrap();
    }
    let url = own.url().replace("/postgres?", "/herald?");
    let store = PostgresStore::open(Options::new(url)).await.unwrap();
    let first = request("first");
    planned(&store, &first, &rows(&first.id, 100)).await;

    let ballast = disk.0.join("ballast");
    run(
        "dd",
        &[
            "if=/dev/zero",
            &format!("of={}", ballast.display()),
            "bs=64k",
            "count=600",
        ],
    );
    let mut asked = Vec::new();
    let refused = loop {
        let number = asked.len();
        assert!(number < 10_000, "the disk is never full");
        let some: Vec<_> = (0..200)
            .map(|n| Arc::new(request(&format!("{number}-{n}"))))
            .collect();
        let answer = store.insert_notifications(&[], &some).await;
        asked.push(some);
        match answer {
            Ok(_) => {}
            Err(StoreError::Unavailable { reason }) => break reason,
            Err(other) => panic!("{other}"),
        }
    };
    assert!(refused.contains("No space left"), "{refused}");
    // What was there can be read, and what waits can be asked for.
    assert_eq!(store.unended().await.unwrap(), (100, 0));
    std::fs::remove_file(ballast).unwrap();
    let again = asked.pop().unwrap();
    store.insert_notifications(&[], &again).await.unwrap();
    store.close().await;
}
