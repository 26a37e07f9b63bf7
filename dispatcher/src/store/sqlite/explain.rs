//! How SQLite means to answer a statement: no question may read a whole table that grows.

use sqlx::Row;

use super::SqliteStore;

/// Panics if a statement would read all of a table, or all of what a namespace has in it. `small` are tables (or their
/// aliases) that may be read so.
pub(super) async fn reads_no_whole_table(store: &SqliteStore, statement: &str, small: &[&str]) {
    let question = format!("EXPLAIN QUERY PLAN {statement}");
    let plan = sqlx::query(sqlx::AssertSqlSafe(question))
        .fetch_all(&store.readers)
        .await
        .unwrap();
    assert!(!plan.is_empty(), "no plan for {statement}");
    for step in plan {
        let step: String = step.get("detail");
        let mut words = step.split(' ');
        let (verb, table) = (words.next().unwrap(), words.next().unwrap_or_default());
        let whole = match verb {
            // Rows that a statement brings, and what it has found already, are constant, in parentheses or virtual.
            "SCAN" => {
                !step.contains("VIRTUAL TABLE")
                    && !table.starts_with('(')
                    && step != "SCAN CONSTANT ROW"
            }
            "SEARCH" => step.ends_with("(namespace=?)"),
            _ => false,
        };
        assert!(!whole || small.contains(&table), "{step} in {statement}");
    }
}
