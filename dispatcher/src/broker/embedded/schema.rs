//! The tables of the queue's file, and the statements that read them.

use std::sync::LazyLock;

/// The schema's steps; a released one is never changed.
///
/// Topics have numbers of their own so that a message and its index entry carry a small integer. `deliver_at` is 0 for
/// what may go at once, so that the index serves a topic in the order of publishing; milliseconds otherwise. Numbers of
/// messages are never used twice (AUTOINCREMENT), also when all are gone.
pub(super) const STEPS: &[&str] = &["
CREATE TABLE topics (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
) STRICT;
CREATE TABLE positions (
    topic INTEGER PRIMARY KEY,
    position INTEGER NOT NULL
) STRICT;
CREATE TABLE messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    topic INTEGER NOT NULL,
    deliver_at INTEGER NOT NULL,
    published_at INTEGER NOT NULL,
    payload BLOB NOT NULL
) STRICT;
CREATE INDEX messages_in_order ON messages (topic, deliver_at);
"];

/// A topic's next messages where nothing is delayed. The row-value form below would not seek to the id.
pub(super) const READ: &str = "
SELECT id, deliver_at, payload FROM messages
WHERE topic = ?1 AND deliver_at = 0 AND id > ?2 ORDER BY id LIMIT ?3";

/// A topic's next messages that are due, where some are delayed.
pub(super) const READ_DUE: &str = "
SELECT id, deliver_at, payload FROM messages
WHERE topic = ?1 AND (deliver_at, id) > (?2, ?3) AND deliver_at <= ?4
ORDER BY deliver_at, id LIMIT ?5";

/// When the next message of a topic becomes due.
pub(super) const NEXT_DUE: &str =
    "SELECT min(deliver_at) FROM messages WHERE topic = ?1 AND deliver_at > ?2";

/// A topic's next messages, due or not.
pub(super) const READ_ALL: &str = "
SELECT id, deliver_at, payload FROM messages
WHERE topic = ?1 AND id > ?2 ORDER BY id LIMIT ?3";

/// What there is of each topic.
pub(super) const TOPICS: &str = "
SELECT t.id, t.name, coalesce(p.position, 0), coalesce(m.last, 0), coalesce(m.due, 0)
FROM topics t
LEFT JOIN positions p ON p.topic = t.id
LEFT JOIN (SELECT topic, max(id) AS last, max(deliver_at) AS due FROM messages GROUP BY topic) m
    ON m.topic = t.id";

/// The greatest number a message ever had.
pub(super) const LAST_ID: &str =
    "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'messages'), 0)";

/// Makes a topic known.
pub(super) const ADD_TOPIC: &str = "INSERT OR IGNORE INTO topics (id, name) VALUES (?1, ?2)";

/// Deletes acknowledged messages; the argument is a JSON array of their ids.
pub(super) const DELETE: &str =
    "DELETE FROM messages WHERE id IN (SELECT value FROM json_each(?1))";

/// Moves the subscription of a retained topic.
pub(super) const MOVE: &str = "INSERT INTO positions (topic, position) VALUES (?1, ?2)
ON CONFLICT (topic) DO UPDATE SET position = excluded.position";

/// Deletes the oldest messages of a retained topic (1) up to an id (2), if they were published before an instant (3);
/// looks at so many (4) at most.
pub(super) const EXPIRE: &str = "
DELETE FROM messages WHERE topic = ?1 AND deliver_at = 0 AND id <= (
    SELECT max(id) FROM (
        SELECT id, published_at FROM messages
        WHERE topic = ?1 AND deliver_at = 0 AND id <= ?2 ORDER BY id LIMIT ?4
    ) WHERE published_at < ?3
)";

/// Whether a retained topic (1) has messages up to an id (2).
pub(super) const ANY: &str = "
SELECT EXISTS (SELECT 1 FROM messages WHERE topic = ?1 AND deliver_at = 0 AND id <= ?2)";

/// Bytes in use: the file's pages without the free ones.
pub(super) const USED: &str = "
SELECT ((SELECT page_count FROM pragma_page_count) - (SELECT freelist_count FROM pragma_freelist_count))
     * (SELECT page_size FROM pragma_page_size)";

/// Inserts of several rows at once, the largest first: an execution costs more than a row.
pub(super) static INSERTS: LazyLock<[(usize, String); 3]> =
    LazyLock::new(|| [32, 8, 1].map(|rows| (rows, insert(rows))));

fn insert(rows: usize) -> String {
    let values = vec!["(?, ?, ?, ?, ?)"; rows].join(", ");
    format!("INSERT INTO messages (id, topic, deliver_at, published_at, payload) VALUES {values}")
}
