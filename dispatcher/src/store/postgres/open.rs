//! Coming to the database: at once, or, if it is away, as soon as it answers. Only what no waiting cures is refused.

use std::io;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::migrate::{self, MigrateError};

/// Between two attempts at a database that is away.
const PAUSE: Duration = Duration::from_secs(1);

/// How often it is said that it still is.
const SAY: Duration = Duration::from_secs(30);

/// Why a database cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error("{source}")]
    Connect { source: sqlx::Error },
    #[error("it does not answer")]
    Answer,
    #[error("{0}")]
    Migrate(MigrateError),
}

impl OpenError {
    /// Whether waiting may cure it: the database, or the way to it, is away. A wrong password, a certificate that is not trusted, a database that does not
    /// exist or a schema that is too new are not of this kind.
    fn passes(&self) -> bool {
        match self {
            Self::Answer => true,
            Self::Connect { source }
            | Self::Migrate(MigrateError::Read { source } | MigrateError::Apply { source, .. }) => {
                is_away(source)
            }
            Self::Migrate(MigrateError::TooOld { .. }) => false,
        }
    }
}

/// Codes: PostgreSQL, appendix A. 08: connection, 53: too many of them, or no room, 57: starting, or shutting down.
fn is_away(error: &sqlx::Error) -> bool {
    match error {
        // A certificate that is not trusted is data that is not valid.
        sqlx::Error::Io(error) => error.kind() != io::ErrorKind::InvalidData,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            let class = code.get(..2).unwrap_or_default();
            matches!(class, "08" | "53" | "57")
        }),
        _ => false,
    }
}

/// A database that was brought to the schema, or will be.
pub(super) struct Opened {
    /// Whether it has the schema by now: until then no other connection is of use.
    pub(super) is_ready: watch::Receiver<bool>,
    /// Goes on trying as long as this lives.
    pub(super) trying: Option<DropGuard>,
}

/// Brings a database to the schema. If it is away, `place` is named in the log, and it goes on trying.
pub(super) async fn open(
    at: &PgConnectOptions,
    place: &str,
    patience: Duration,
) -> Result<Opened, OpenError> {
    let (ready, is_ready) = watch::channel(false);
    let trying = match prepare(at, patience).await {
        Ok(()) => {
            ready.send_replace(true);
            None
        }
        Err(error) if error.passes() => {
            tracing::warn!(
                database = place,
                %error,
                "the database is away: going on without it, and trying again"
            );
            let stop = CancellationToken::new();
            let (at, place, stopping) = (at.clone(), place.to_owned(), stop.clone());
            tokio::spawn(async move {
                let trying = try_again(&at, &place, patience, &ready);
                stopping.run_until_cancelled(trying).await;
            });
            Some(stop.drop_guard())
        }
        Err(error) => return Err(error),
    };
    Ok(Opened { is_ready, trying })
}

/// Until it works. What is found to be wrong by then is said again and again, and may be cured without a restart.
async fn try_again(
    at: &PgConnectOptions,
    place: &str,
    patience: Duration,
    ready: &watch::Sender<bool>,
) {
    let mut said = tokio::time::Instant::now();
    loop {
        tokio::time::sleep(PAUSE).await;
        let Err(error) = prepare(at, patience).await else {
            tracing::info!(database = place, "the database is there");
            ready.send_replace(true);
            return;
        };
        let passes = error.passes();
        if said.elapsed() > SAY || !passes {
            said = tokio::time::Instant::now();
            if passes {
                tracing::warn!(database = place, %error, "the database is still away");
            } else {
                tracing::error!(database = place, %error, "the database cannot be used: nothing is stored until this is cured");
                tokio::time::sleep(SAY).await;
            }
        }
    }
}

async fn prepare(at: &PgConnectOptions, patience: Duration) -> Result<(), OpenError> {
    let connecting = tokio::time::timeout(patience, at.connect()).await;
    let connecting = connecting.map_err(|_| OpenError::Answer)?;
    let mut connection = connecting.map_err(|source| OpenError::Connect { source })?;
    migrate::migrate(&mut connection, migrate::STEPS)
        .await
        .map_err(OpenError::Migrate)?;
    // That nobody listens for the end of this connection is no failure.
    drop(connection.close().await);
    Ok(())
}
