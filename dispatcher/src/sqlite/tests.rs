use super::*;

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("refused by the job")]
    Refused,
    #[error(transparent)]
    Sql(sqlx::Error),
    #[error(transparent)]
    Write(WriteError),
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Self {
        Self::Write(error)
    }
}

const STEPS: &[&str] = &[
    "CREATE TABLE first (n INTEGER PRIMARY KEY); CREATE TABLE other (n INTEGER)",
    "INSERT INTO other VALUES (2)",
];

async fn database(folder: &tempfile::TempDir) -> SqliteConnection {
    let path = folder.path().join("database");
    let mut connection = open(&path, Settings::default()).await.unwrap();
    migrate(&mut connection, STEPS).await.unwrap();
    connection
}

async fn insert(writer: &Writer, n: i64) -> Result<(), Failure> {
    writer
        .run(move |connection| {
            Box::pin(async move {
                sqlx::query("INSERT INTO first VALUES (?)")
                    .bind(n)
                    .execute(connection)
                    .await
                    .map_err(Failure::Sql)?;
                Ok(())
            })
        })
        .await
}

async fn numbers(folder: &tempfile::TempDir) -> Vec<i64> {
    let mut connection = database(folder).await;
    let found = sqlx::query_scalar("SELECT n FROM first ORDER BY n")
        .fetch_all(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    found
}

#[tokio::test]
async fn a_step_of_the_schema_is_done_once_and_a_newer_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    database(&folder).await.close().await.unwrap();
    let mut connection = database(&folder).await;
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM other")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(rows, 1);
    let error = migrate(&mut connection, &STEPS[..1]).await.unwrap_err();
    assert!(matches!(error, OpenError::Newer { found: 2, known: 1 }));
}

#[tokio::test]
async fn a_step_that_fails_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut connection = database(&folder).await;
    let steps = [
        STEPS[0],
        STEPS[1],
        "DELETE FROM other; INSERT INTO missing VALUES (1)",
    ];
    let error = migrate(&mut connection, &steps).await.unwrap_err();
    assert!(matches!(error, OpenError::Migrate { version: 3, .. }));
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM other")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(rows, 1);
}

#[tokio::test]
async fn a_file_belongs_to_one_holder_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("database");
    let held = lock(&path).unwrap();
    assert!(matches!(lock(&path), Err(OpenError::InUse { .. })));
    drop(held);
    lock(&path).unwrap();
}

#[tokio::test]
async fn a_job_that_fails_is_undone_alone() {
    let folder = tempfile::tempdir().unwrap();
    let writer = Writer::spawn(database(&folder).await);
    let jobs = (0..200i64).map(|n| {
        let writer = writer.clone();
        async move {
            writer
                .run(move |connection| {
                    Box::pin(async move {
                        sqlx::query("INSERT INTO first VALUES (?)")
                            .bind(n)
                            .execute(connection)
                            .await
                            .map_err(Failure::Sql)?;
                        match n % 7 {
                            0 => Err(Failure::Refused),
                            1 => panic!("a job that panics"),
                            _ => Ok(n),
                        }
                    })
                })
                .await
        }
    });
    let outcomes = futures::future::join_all(jobs).await;
    for (n, outcome) in (0..200i64).zip(&outcomes) {
        match n % 7 {
            0 => assert!(matches!(outcome, Err(Failure::Refused))),
            1 => assert!(matches!(outcome, Err(Failure::Write(WriteError::Closed)))),
            _ => assert!(matches!(outcome, Ok(m) if *m == n)),
        }
    }
    writer.close().await;
    let expected: Vec<i64> = (0..200).filter(|n| n % 7 > 1).collect();
    assert_eq!(numbers(&folder).await, expected);
}

#[tokio::test]
async fn what_is_queued_is_done_before_it_closes_and_nothing_after() {
    let folder = tempfile::tempdir().unwrap();
    let writer = Writer::spawn(database(&folder).await);
    let queued = futures::future::join_all((0..50).map(|n| insert(&writer, n)));
    let (outcomes, ()) = tokio::join!(queued, writer.close());
    assert!(outcomes.iter().all(Result::is_ok));
    let late = insert(&writer, 99).await.unwrap_err();
    assert!(matches!(late, Failure::Write(WriteError::Closed)));
    assert_eq!(numbers(&folder).await.len(), 50);
}

#[tokio::test]
async fn what_was_answered_before_an_abort_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let writer = Writer::spawn(database(&folder).await);
    let answered: Vec<_> = (0..500)
        .map(|n| {
            let writer = writer.clone();
            tokio::spawn(async move { insert(&writer, n).await.ok().map(|()| n) })
        })
        .collect();
    insert(&writer, 1000).await.unwrap();
    writer.abort().await;
    let kept = numbers(&folder).await;
    assert!(kept.contains(&1000));
    for outcome in answered {
        if let Some(n) = outcome.await.unwrap() {
            assert!(kept.contains(&n), "{n} was answered and is lost");
        }
    }
}

#[tokio::test]
async fn a_full_disk_fails_the_jobs_and_leaves_the_writer_usable() {
    let folder = tempfile::tempdir().unwrap();
    let mut connection = database(&folder).await;
    sqlx::query("PRAGMA max_page_count = 10")
        .execute(&mut connection)
        .await
        .unwrap();
    let writer = Writer::spawn(connection);
    let fill = |bytes: i64| {
        let writer = writer.clone();
        async move {
            writer
                .run(move |connection| {
                    Box::pin(async move {
                        sqlx::query("INSERT INTO other VALUES (zeroblob(?))")
                            .bind(bytes)
                            .execute(connection)
                            .await
                            .map_err(Failure::Sql)?;
                        Ok(())
                    })
                })
                .await
        }
    };
    let (large, small) = tokio::join!(fill(1_000_000), insert(&writer, 1));
    let out_of_space = match large.unwrap_err() {
        Failure::Sql(error) => is_full(&error),
        Failure::Write(error) => error.is_full(),
        Failure::Refused => false,
    };
    assert!(out_of_space);
    drop(small);
    insert(&writer, 2).await.unwrap();
    writer.close().await;
    assert!(numbers(&folder).await.contains(&2));
}
