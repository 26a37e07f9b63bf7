-- What waits, what was, definitions and people.
--
-- Times are milliseconds since 1970 (UTC). Priorities and states are the numbers of `Priority` and `history::State`.
-- Ids are blobs: 16 bytes of a notification, 12 of a delivery. A delivery's id begins with four bytes of its
-- notification's, then four of its recipient's `id::order`: so the range of ids with one prefix is a notification's
-- deliveries, in the order in which they are resolved, and needs no index of its own.

-- Channels by number, so that rows and indexes are small.
CREATE TABLE channels (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE -- namespace/name; empty: none could be found
);

-- One notification: what changes about it, and by what it is searched. What was asked is in `requests`.
CREATE TABLE notifications (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, -- also its turn in the waiting room
    id BLOB NOT NULL UNIQUE,
    namespace TEXT NOT NULL,
    template TEXT NOT NULL,
    sender TEXT NOT NULL,
    body TEXT NOT NULL, -- the digest by which a repeat is told from a conflict
    priority INTEGER NOT NULL, -- as it is now
    metadata TEXT, -- JSON object; NULL: none
    sensitive INTEGER NOT NULL, -- 1: its parameters are blanked when it has ended
    accepted_at INTEGER NOT NULL,
    resolve_at INTEGER NOT NULL, -- `sendAt`, else acceptance; later if it was put off
    expires_at INTEGER, -- what has not been sent by then is too late; NULL: never
    -- 0: nothing to resolve (done, cancelled or held), 1: its time has not come, 2: to be resolved
    pending INTEGER NOT NULL,
    resolved INTEGER NOT NULL DEFAULT 0, -- 1: all its recipients are rows
    -- JSON of `Cursor`: how far its recipients are resolved
    cursor TEXT NOT NULL,
    rows INTEGER NOT NULL DEFAULT 0, -- deliveries written so far
    confirmed INTEGER, -- so many recipients were confirmed
    held_recipients INTEGER, -- held because they are so many …
    held_allowed INTEGER, -- … and so many are allowed; NULL: not held
    conflicts INTEGER NOT NULL DEFAULT 0,
    cancelled_at INTEGER,
    last_ended_at INTEGER, -- of the delivery that ended last
    ended_at INTEGER, -- all resolved (or cancelled), all ended; NULL: not yet, or again not (replay)
    -- Deliveries by state. Every statement that changes a delivery's state changes these in the same transaction.
    scheduled INTEGER NOT NULL DEFAULT 0,
    queued INTEGER NOT NULL DEFAULT 0,
    sending INTEGER NOT NULL DEFAULT 0,
    retrying INTEGER NOT NULL DEFAULT 0,
    suppressed INTEGER NOT NULL DEFAULT 0,
    cancelled INTEGER NOT NULL DEFAULT 0,
    expired INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    unknown INTEGER NOT NULL DEFAULT 0,
    sent INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX notifications_pending ON notifications (priority, rows) WHERE pending = 2;
CREATE INDEX notifications_planned ON notifications (resolve_at) WHERE pending = 1;
CREATE INDEX notifications_expiring ON notifications (expires_at) WHERE ended_at IS NULL AND expires_at IS NOT NULL;
CREATE INDEX notifications_open ON notifications (namespace, template) WHERE ended_at IS NULL;
CREATE INDEX notifications_accepted ON notifications (namespace, accepted_at);
CREATE INDEX notifications_template ON notifications (namespace, template, accepted_at);
CREATE INDEX notifications_ended ON notifications (ended_at) WHERE ended_at IS NOT NULL;

-- What was asked: JSON of `Request`, as text, or as a blob that is zstd of it. Sensitive ones are always text.
CREATE TABLE requests (
    notification INTEGER PRIMARY KEY, -- notifications.seq
    request ANY NOT NULL
) STRICT;

-- What happened to a notification as a whole; its deliveries' trails include it.
CREATE TABLE notification_trail (
    notification INTEGER NOT NULL,
    at INTEGER NOT NULL,
    step TEXT NOT NULL, -- cancelled, prioritized
    detail TEXT NOT NULL, -- JSON object
    PRIMARY KEY (notification, at, step)
) WITHOUT ROWID;

-- One delivery: a row of the waiting room (waiting > 0), out (waiting = 0, not ended), or history (ended).
CREATE TABLE deliveries (
    row INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    notification INTEGER NOT NULL, -- notifications.seq
    -- `id::order` of the notification's namespace, by which namespaces take turns; two that share one share their turns
    namespace INTEGER NOT NULL,
    channel INTEGER NOT NULL, -- channels.id
    priority INTEGER NOT NULL,
    state INTEGER NOT NULL, -- waiting rows are scheduled, queued or retrying; those that are out sending or retrying
    waiting INTEGER NOT NULL, -- 0: not, 1: until it is due, 2: it is due, 3: it rests, its template being suspended
    dead INTEGER NOT NULL DEFAULT 0, -- 1: a dead letter, neither replayed nor discarded
    round INTEGER NOT NULL DEFAULT 0,
    attempt INTEGER NOT NULL DEFAULT 1, -- the one that ended it; else the one that is out or goes out next
    tried INTEGER NOT NULL DEFAULT 0, -- attempts of the round that reached a provider
    recipient TEXT NOT NULL, -- empty: a bare address
    endpoint TEXT NOT NULL,
    locale TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    due_at INTEGER NOT NULL,
    released_at INTEGER, -- when it last left the waiting room
    heard_at INTEGER, -- when it last left the waiting room or an event told of it, whichever is later
    ended_at INTEGER,
    provider TEXT, -- the one that sent it or tried it last
    provider_id TEXT, -- what that provider calls it
    milliseconds INTEGER, -- how long the provider that sent it took
    reason TEXT, -- of the suppression or the last failure
    error TEXT -- what the provider said last when it did not send
);
-- What may be released, in turn.
CREATE INDEX deliveries_ready ON deliveries (channel, priority, namespace, notification, due_at) WHERE waiting = 2;
CREATE INDEX deliveries_scheduled ON deliveries (channel, priority, due_at) WHERE waiting = 1;
-- What rests, by notification and by channel.
CREATE INDEX deliveries_resting ON deliveries (notification) WHERE waiting = 3;
CREATE INDEX deliveries_resting_channel ON deliveries (channel) WHERE waiting = 3;
-- What is out, for the sweep.
CREATE INDEX deliveries_out ON deliveries (channel, heard_at) WHERE waiting = 0 AND ended_at IS NULL;
CREATE INDEX deliveries_dead ON deliveries (ended_at) WHERE dead = 1;
-- Whether a channel has dead letters at all.
CREATE INDEX deliveries_dead_of_channel ON deliveries (channel) WHERE dead = 1;
-- What one person got: by `id::order` of the recipient, which is in the id, so that the rows of one notification
-- are written to this index from one end to the other.
CREATE INDEX deliveries_recipient ON deliveries (substr(id, 5, 4)) WHERE recipient <> '';

-- Templates of which something rests, or did until a moment ago.
CREATE TABLE resting (
    namespace TEXT NOT NULL,
    template TEXT NOT NULL,
    PRIMARY KEY (namespace, template)
) WITHOUT ROWID;

-- Deliveries that came back whole and go out again as they are: those that wait and dead letters, but for sensitive dead letters.
CREATE TABLE carried (
    row INTEGER PRIMARY KEY, -- deliveries.row
    delivery BLOB NOT NULL -- JSON of `Delivery`
);

-- The audit trail of deliveries, but for what their rows say themselves: accepted (notifications.accepted_at), planned
-- (created_at), released (released_at, the last time), and the end: if no entry is of a row's (ended_at, round, attempt)
-- and has the name of its state, the row itself is that entry. So the common case, one release and `sent`, has none here.
CREATE TABLE trail (
    row INTEGER NOT NULL, -- deliveries.row
    at INTEGER NOT NULL,
    round INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    step TEXT NOT NULL,
    detail TEXT NOT NULL, -- JSON object without content
    PRIMARY KEY (row, at, round, attempt, step)
) WITHOUT ROWID;

-- Outcomes of deliveries that have no row yet; folded when it appears.
CREATE TABLE orphans (
    delivery BLOB NOT NULL,
    at INTEGER NOT NULL,
    round INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    step TEXT NOT NULL,
    event BLOB NOT NULL, -- JSON of `Event`
    PRIMARY KEY (delivery, at, round, attempt, step)
);

-- Messages that nobody can read, the newest thousand, until the end of retention.
CREATE TABLE garbage (
    topic TEXT NOT NULL, -- where it was found
    message TEXT NOT NULL, -- where it stood there: section:entry:partition
    at INTEGER NOT NULL,
    reason TEXT NOT NULL,
    length INTEGER NOT NULL, -- of the whole message
    bytes BLOB NOT NULL, -- the first 64 KiB of it
    UNIQUE (topic, message)
);

-- Definitions, for ever: whatever was sent can be rendered as it was.
CREATE TABLE definitions (
    hash TEXT PRIMARY KEY,
    definition BLOB NOT NULL -- zstd of canonical JSON
) WITHOUT ROWID;

-- Which definition of a template came into force when.
CREATE TABLE definitions_in_force (
    namespace TEXT NOT NULL,
    template TEXT NOT NULL,
    since INTEGER NOT NULL,
    hash TEXT NOT NULL,
    PRIMARY KEY (namespace, template, since)
) WITHOUT ROWID;

-- Business events and the delivery that told of each.
CREATE TABLE claims (
    namespace TEXT NOT NULL,
    template TEXT NOT NULL,
    key TEXT NOT NULL,
    delivery BLOB NOT NULL, -- the owner
    until INTEGER NOT NULL,
    PRIMARY KEY (namespace, template, key)
) WITHOUT ROWID;
CREATE INDEX claims_until ON claims (until);

-- The directory as it is now, in the order in which members are resolved.
CREATE TABLE recipients (
    namespace TEXT NOT NULL,
    ord INTEGER NOT NULL, -- id::order(id)
    id TEXT NOT NULL,
    recipient TEXT NOT NULL, -- JSON of `Recipient`
    PRIMARY KEY (namespace, ord, id)
) WITHOUT ROWID;
CREATE UNIQUE INDEX recipients_id ON recipients (namespace, id);

-- Addresses in the directory, for search.
CREATE TABLE recipient_addresses (
    namespace TEXT NOT NULL,
    address TEXT NOT NULL,
    id TEXT NOT NULL, -- recipients.id
    PRIMARY KEY (namespace, address, id)
) WITHOUT ROWID;
CREATE INDEX recipient_addresses_id ON recipient_addresses (namespace, id);

-- Who had which label when: from `valid_from` until before `valid_to` (NULL: still). One of each is open at a time.
CREATE TABLE recipient_labels (
    namespace TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    ord INTEGER NOT NULL, -- id::order(id)
    id TEXT NOT NULL, -- recipients.id
    valid_from INTEGER NOT NULL,
    valid_to INTEGER,
    PRIMARY KEY (namespace, key, value, ord, id, valid_from)
) WITHOUT ROWID;
CREATE INDEX recipient_labels_id ON recipient_labels (namespace, id) WHERE valid_to IS NULL;
CREATE INDEX recipient_labels_ended ON recipient_labels (valid_to) WHERE valid_to IS NOT NULL;

-- Managed groups by number.
CREATE TABLE groups (
    id INTEGER PRIMARY KEY,
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    UNIQUE (namespace, name)
);

-- Who was in which managed group when: as with labels.
CREATE TABLE members (
    group_id INTEGER NOT NULL, -- groups.id
    ord INTEGER NOT NULL, -- id::order(id)
    id TEXT NOT NULL, -- recipients.id
    valid_from INTEGER NOT NULL,
    valid_to INTEGER,
    PRIMARY KEY (group_id, ord, id, valid_from)
) WITHOUT ROWID;
CREATE INDEX members_id ON members (group_id, id) WHERE valid_to IS NULL;
CREATE INDEX members_ended ON members (valid_to) WHERE valid_to IS NOT NULL;

-- Addresses to which nothing is sent.
CREATE TABLE suppressions (
    namespace TEXT NOT NULL,
    medium TEXT NOT NULL,
    address TEXT NOT NULL,
    reason TEXT NOT NULL,
    since INTEGER NOT NULL,
    PRIMARY KEY (namespace, address, medium)
) WITHOUT ROWID;

-- Where schedules stand.
CREATE TABLE schedules (
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    created_at INTEGER NOT NULL, -- when it was made, else first seen
    uid TEXT, -- in Kubernetes; another's begins anew
    last_due INTEGER, -- the due time that is done with last: it fired, or was skipped
    last_fired INTEGER, -- the due time that fired last
    last_notification BLOB, -- what was sent then
    refused_due INTEGER, -- the due time that was refused last; counts until a later one fires
    refused_declared BLOB, -- SHA-256 of the schedule that was refused, as it was declared
    refusal TEXT, -- why
    missed INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (namespace, name)
) WITHOUT ROWID;

-- API keys, by their SHA-256.
CREATE TABLE keys (
    name TEXT PRIMARY KEY,
    digest BLOB NOT NULL,
    scopes TEXT NOT NULL, -- JSON array
    created_at INTEGER NOT NULL
) WITHOUT ROWID;
