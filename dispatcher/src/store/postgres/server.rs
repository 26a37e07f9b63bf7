//! A PostgreSQL of the tests' own, started once in a process and gone with it, with a database for each test.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _};
use tokio::sync::OnceCell;

use super::{Options, PostgresStore};

/// Names a server to use instead of one of our own: somebody who may make databases.
const GIVEN: &str = "HERALD_E2E_DATABASE_URL";

/// How long a server may take to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where servers live as root: PostgreSQL refuses to run as root itself.
const USER: &str = "postgres";

/// Made with the schema, so that a test's database is a copy.
const TEMPLATE: &str = "herald_template";

/// A server that was started and does not answer for so long is started again.
const AGAIN: Duration = Duration::from_secs(2);

/// Starts the server at each line of its input; while it runs, another one finds so and ends. Once whoever holds the input
/// is gone, however that came, it ends the server and deletes its folder.
const SUPERVISE: &str = r#"folder=$1; shift
    while read -r _; do "$@" & done
    kill -QUIT "$(head -n 1 "$folder/cluster/postmaster.pid")"; wait; rm -rf "$folder""#;

struct Server {
    /// An address without its database.
    before: String,
    after: String,
    /// `None`: the server was given.
    _own: Option<Own>,
}

impl Server {
    fn url(&self, database: &str) -> String {
        format!("{}/{database}{}", self.before, self.after)
    }
}

/// A database of a test's own.
pub(super) struct Database {
    pub(super) url: String,
}

impl Database {
    /// With the schema.
    pub(super) async fn new() -> Self {
        Self::copy_of(&format!("{TEMPLATE}_{}", std::process::id())).await
    }

    /// With nothing.
    pub(super) async fn empty() -> Self {
        Self::copy_of("template1").await
    }

    async fn copy_of(template: &str) -> Self {
        static SERVER: OnceCell<Server> = OnceCell::const_new();
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let server = SERVER.get_or_init(start).await;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("herald_test_{}_{number}", std::process::id());
        create(server, &name, template).await;
        Self {
            url: server.url(&name),
        }
    }

    pub(super) fn options(&self) -> Options {
        Options {
            connections: 4,
            releasing: 2,
            // Tests have no second try.
            patience: Duration::from_secs(60),
            statement_timeout: Duration::from_secs(60),
            ..Options::new(self.url.clone())
        }
    }

    /// Another gateway.
    pub(super) async fn open(&self) -> PostgresStore {
        PostgresStore::open(self.options()).await.unwrap()
    }
}

async fn create(server: &Server, name: &str, template: &str) {
    let mut connection = PgConnection::connect(&server.url("postgres"))
        .await
        .unwrap();
    // One at a time: a template must not be in use.
    let statement = format!(
        "SELECT pg_advisory_lock(1); CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy"
    );
    for statement in statement.split(';') {
        sqlx::raw_sql(AssertSqlSafe(statement))
            .execute(&mut connection)
            .await
            .unwrap();
    }
    connection.close().await.unwrap();
}

async fn start() -> Server {
    let server = match std::env::var(GIVEN) {
        Ok(url) => {
            let (address, query) = url.split_once('?').unwrap_or((&url, ""));
            let (before, _) = address.rsplit_once('/').unwrap();
            Server {
                before: before.to_owned(),
                after: format!("?{query}"),
                _own: None,
            }
        }
        Err(_) => start_own(),
    };
    let begun = Instant::now();
    let mut connection = loop {
        match PgConnection::connect(&server.url("postgres")).await {
            Ok(connection) => break connection,
            Err(error) => assert!(
                begun.elapsed() < PATIENCE,
                "PostgreSQL does not start: {error}"
            ),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let template = format!("{TEMPLATE}_{}", std::process::id());
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {template}")))
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    let store = PostgresStore::open(Options::new(server.url(&template)))
        .await
        .unwrap();
    store.close().await;
    server
}

/// Made for speed: what it holds is gone with the tests.
const FAST: [&str; 4] = [
    "fsync=off",
    "synchronous_commit=off",
    "full_page_writes=off",
    "max_connections=400",
];

fn start_own() -> Server {
    let own = Own::new(&FAST);
    Server {
        before: "postgres://herald@localhost".to_owned(),
        after: own.query(),
        _own: Some(own),
    }
}

/// A server for the tests alone, which may be killed and started again.
pub(super) struct Own {
    folder: PathBuf,
    /// Each line that it reads starts the server; at the end of its input it ends the server and deletes the folder.
    supervisor: Child,
}

impl Own {
    /// Starts a server with these settings. It listens in its folder alone, unless they say otherwise.
    pub(super) fn new(settings: &[&str]) -> Self {
        let folder = folder();
        let own = Self {
            supervisor: supervise(&folder, settings),
            folder,
        };
        own.start();
        own
    }

    /// Where it has its socket, its log, and what a test puts there.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// How it is reached, for after the database in an address.
    fn query(&self) -> String {
        format!("?host={}&sslmode=disable", self.folder.display())
    }

    /// The address of the database that every server has.
    pub(super) fn url(&self) -> String {
        format!("postgres://herald@localhost/postgres{}", self.query())
    }

    pub(super) fn start(&self) {
        use std::io::Write as _;
        let mut input = self.supervisor.stdin.as_ref().unwrap();
        input.write_all(b"start\n").unwrap();
    }

    /// Kills it as a crash does: nobody is told, nothing is written.
    pub(super) fn kill(&self) {
        let file = self.folder.join("cluster/postmaster.pid");
        let text = std::fs::read_to_string(file).unwrap();
        run("kill", &["-KILL", text.lines().next().unwrap()]);
    }

    /// Waits until it answers; starts it again for as long as the one before is in the way.
    pub(super) async fn answers(&self) -> PgConnection {
        let begun = Instant::now();
        let mut asked = Instant::now();
        loop {
            match PgConnection::connect(&self.url()).await {
                Ok(connection) => return connection,
                Err(error) => assert!(
                    begun.elapsed() < PATIENCE,
                    "PostgreSQL does not start: {error}, see {}",
                    self.folder.join("log").display()
                ),
            }
            if asked.elapsed() > AGAIN && begun.elapsed() > AGAIN {
                self.start();
                asked = Instant::now();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        drop(self.supervisor.stdin.take());
        // That it has ended is all that is waited for.
        let _ = self.supervisor.wait();
    }
}

/// A folder with a new cluster.
fn folder() -> PathBuf {
    let folder = tempfile::Builder::new()
        .prefix("herald-postgres-")
        .tempdir()
        .unwrap()
        .keep();
    let is_root = is_root();
    if is_root {
        run("chown", &[USER, &folder.display().to_string()]);
    }
    let mut initdb = as_user(is_root);
    initdb
        .arg(programs().join("initdb"))
        .arg("--pgdata")
        .arg(folder.join("cluster"));
    let made = initdb
        .args(["--username=herald", "--auth=trust", "--no-sync"])
        .args(["--encoding=UTF8", "--locale=C"])
        .current_dir(&folder)
        .output()
        .unwrap();
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    folder
}

fn supervise(folder: &Path, settings: &[&str]) -> Child {
    let log = std::fs::File::create(folder.join("log")).unwrap();
    let mut supervisor = Command::new("sh");
    supervisor.args(["-c", SUPERVISE, "supervise"]).arg(folder);
    if is_root() {
        supervisor.args([
            "setpriv",
            "--reuid",
            USER,
            "--regid",
            USER,
            "--clear-groups",
        ]);
    }
    supervisor
        .arg(programs().join("postgres"))
        .arg("-D")
        .arg(folder.join("cluster"));
    let socket = format!("unix_socket_directories={}", folder.display());
    for setting in ["listen_addresses=", &socket, "autovacuum=off"]
        .iter()
        .chain(settings)
    {
        supervisor.args(["-c", setting]);
    }
    std::os::unix::process::CommandExt::process_group(&mut supervisor, 0)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

pub(super) fn is_root() -> bool {
    run("id", &["-u"]).trim() == "0"
}

/// The server's programs are not on the path where distributions keep several versions.
fn programs() -> PathBuf {
    let kept = Path::new("/usr/lib/postgresql");
    let mut found: Vec<PathBuf> = std::fs::read_dir(kept)
        .map(|entries| {
            entries
                .flatten()
                .map(|entry| entry.path().join("bin"))
                .collect()
        })
        .unwrap_or_default();
    found.retain(|path| path.join("initdb").exists());
    found.sort();
    found.pop().expect(
        "PostgreSQL is not installed: run scripts/need postgresql, or set HERALD_E2E_DATABASE_URL",
    )
}

fn as_user(is_root: bool) -> Command {
    if is_root {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", USER, "--regid", USER, "--clear-groups"]);
        command
    } else {
        Command::new("env")
    }
}

pub(super) fn run(program: &str, words: &[&str]) -> String {
    let done = Command::new(program).args(words).output().unwrap();
    assert!(done.status.success(), "{program} {words:?}");
    String::from_utf8(done.stdout).unwrap()
}
