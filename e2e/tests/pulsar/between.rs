//! Something between the client and the broker, which counts commands and loses those that a test wants lost.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex as StdMutex};
use std::time::Duration;

use herald_dispatcher::broker::pulsar::Settings;
use herald_e2e::environment::{Environment, Options, Pulsar};
use herald_e2e::process::free_port;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

use crate::subject::settings;

/// Commands of Pulsar's protocol, by their numbers there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Command {
    Subscribe = 4,
    Send = 6,
    Message = 9,
    Flow = 11,
    GetLastMessageId = 29,
}

/// What passed, and what shall not.
#[derive(Default)]
struct Passing {
    lost: Option<u64>,
    counts: HashMap<u64, usize>,
}

/// A Pulsar that is only reached through here. One test at a time has it.
pub struct Between {
    pulsar: &'static Pulsar,
    url: String,
    passing: Arc<StdMutex<Passing>>,
    _turn: MutexGuard<'static, ()>,
}

/// For the tasks, which outlive each test's own.
static RUNTIME: LazyLock<tokio::runtime::Runtime> =
    LazyLock::new(|| tokio::runtime::Runtime::new().unwrap());

impl Between {
    pub async fn new() -> Self {
        static TURN: Mutex<()> = Mutex::const_new(());
        static SHARED: OnceCell<(Environment, String, Arc<StdMutex<Passing>>)> =
            OnceCell::const_new();
        let turn = TURN.lock().await;
        let (environment, url, passing) = SHARED
            .get_or_init(async || {
                let passing = Arc::new(StdMutex::new(Passing::default()));
                let (service, here) = (free_port().unwrap(), free_port().unwrap());
                RUNTIME
                    .spawn(listen(here, service, Arc::clone(&passing)))
                    .await
                    .unwrap();
                let url = format!("pulsar://127.0.0.1:{here}");
                // So whoever asks where a topic is, is sent here again.
                let changes = [
                    ("brokerServicePort", service.to_string()),
                    ("advertisedListeners", format!("here:{url}")),
                    ("internalListenerName", "here".to_owned()),
                ];
                let options = Options {
                    postgres: false,
                    broker: changes.map(|(key, value)| (key.to_owned(), value)).into(),
                    ..Options::default()
                };
                let environment = Environment::start_own(&options).await.unwrap();
                (environment, url, passing)
            })
            .await;
        Self {
            pulsar: environment.pulsar().unwrap(),
            url: url.clone(),
            passing: Arc::clone(passing),
            _turn: turn,
        }
    }

    pub fn pulsar(&self) -> &'static Pulsar {
        self.pulsar
    }

    pub fn settings(&self, tenant: &str) -> Settings {
        Settings {
            url: self.url.clone(),
            // Of some operations nothing comes.
            operation_timeout: Duration::from_secs(8),
            ..settings(self.pulsar, tenant)
        }
    }

    /// Loses all commands of one kind from now on; `None`: none any more.
    pub fn lose(&self, command: Option<Command>) {
        self.passing.lock().unwrap().lost = command.map(|command| command as u64);
    }

    /// How many came here, lost ones included.
    pub fn count(&self, command: Command) -> usize {
        let passing = self.passing.lock().unwrap();
        passing.counts.get(&(command as u64)).copied().unwrap_or(0)
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        self.lose(None);
    }
}

/// Returns once it listens.
async fn listen(here: u16, service: u16, passing: Arc<StdMutex<Passing>>) {
    let listener = TcpListener::bind(("127.0.0.1", here)).await.unwrap();
    RUNTIME.spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            // The broker is not there yet, or not any more.
            let Ok(broker) = TcpStream::connect(("127.0.0.1", service)).await else {
                continue;
            };
            let ((from_client, to_client), (from_broker, to_broker)) =
                (client.into_split(), broker.into_split());
            for (from, to) in [(from_client, to_broker), (from_broker, to_client)] {
                RUNTIME.spawn(pass(from, to, Arc::clone(&passing)));
            }
        }
    });
}

/// Passes commands on until either side ends the connection.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    passing: Arc<StdMutex<Passing>>,
) -> Option<()> {
    loop {
        // The length of what follows, then that of the command, then the command: its type is its first field.
        let length = from.read_u32().await.ok()?;
        let mut frame = vec![0; length as usize];
        from.read_exact(&mut frame).await.ok()?;
        let command = u64::from(frame[5]);
        let is_lost = {
            let mut passing = passing.lock().unwrap();
            *passing.counts.entry(command).or_default() += 1;
            passing.lost == Some(command)
        };
        if !is_lost {
            to.write_u32(length).await.ok()?;
            to.write_all(&frame).await.ok()?;
        }
    }
}
