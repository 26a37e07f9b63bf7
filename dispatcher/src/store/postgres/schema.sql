-- What waits, what was, definitions and people. The tables are those of the store on SQLite, whose comments say what a
-- column means; what is said here is what differs.
--
-- Whatever there is a row of for each delivery is partitioned by `day`: when its notification was accepted, in days since
-- 1970 (UTC). A delivery's id begins with four bytes of its notification's, and an event names its notification, so the
-- day is always found first, in `notifications`; the key of a delivery is (day, id). Of an id there is one notification,
-- so it has one day, and (day, id) is as unique as the id alone. Keys begin with the id, so that `day >= …`, which leaves
-- partitions out, is never taken for a way through one.
--
-- Texts that are keys or are put in order have collation "C": the order of their UTF-8, as in Rust.

CREATE TABLE channels (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name TEXT COLLATE "C" NOT NULL UNIQUE
);

-- Days that have partitions.
CREATE TABLE days (
    day INTEGER PRIMARY KEY
);

-- Counts change often: room on each page keeps the new version beside the old one, and the indexes as they are.
CREATE TABLE notifications (
    seq BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id BYTEA NOT NULL UNIQUE,
    day INTEGER NOT NULL,
    namespace TEXT COLLATE "C" NOT NULL,
    template TEXT COLLATE "C" NOT NULL,
    sender TEXT COLLATE "C" NOT NULL,
    body TEXT COLLATE "C" NOT NULL,
    priority SMALLINT NOT NULL,
    metadata TEXT[] NOT NULL, -- key, U+001F, value of each
    sensitive BOOLEAN NOT NULL,
    accepted_at BIGINT NOT NULL,
    resolve_at BIGINT NOT NULL,
    expires_at BIGINT,
    pending SMALLINT NOT NULL,
    resolved BOOLEAN NOT NULL,
    cursor TEXT NOT NULL,
    rows BIGINT NOT NULL DEFAULT 0,
    confirmed BIGINT,
    held_recipients BIGINT,
    held_allowed BIGINT,
    conflicts BIGINT NOT NULL DEFAULT 0,
    cancelled_at BIGINT,
    last_ended_at BIGINT,
    ended_at BIGINT,
    scheduled BIGINT NOT NULL DEFAULT 0,
    queued BIGINT NOT NULL DEFAULT 0,
    sending BIGINT NOT NULL DEFAULT 0,
    retrying BIGINT NOT NULL DEFAULT 0,
    suppressed BIGINT NOT NULL DEFAULT 0,
    cancelled BIGINT NOT NULL DEFAULT 0,
    expired BIGINT NOT NULL DEFAULT 0,
    failed BIGINT NOT NULL DEFAULT 0,
    unknown BIGINT NOT NULL DEFAULT 0,
    sent BIGINT NOT NULL DEFAULT 0
) WITH (fillfactor = 70);
CREATE INDEX notifications_pending ON notifications (priority, rows) WHERE pending = 2;
CREATE INDEX notifications_planned ON notifications (resolve_at) WHERE pending = 1;
CREATE INDEX notifications_expiring ON notifications (expires_at, seq) WHERE ended_at IS NULL AND expires_at IS NOT NULL;
CREATE INDEX notifications_open ON notifications (namespace, template, seq) WHERE ended_at IS NULL;
-- Which days have something that has not ended.
CREATE INDEX notifications_open_days ON notifications (day) WHERE ended_at IS NULL;
CREATE INDEX notifications_days ON notifications (day, ended_at);
CREATE INDEX notifications_accepted ON notifications (namespace, accepted_at, seq);
CREATE INDEX notifications_template ON notifications (namespace, template, accepted_at, seq);

CREATE TABLE requests (
    day INTEGER NOT NULL,
    notification BIGINT NOT NULL,
    packed BOOLEAN NOT NULL, -- zstd of JSON; else JSON
    request BYTEA NOT NULL,
    PRIMARY KEY (notification, day)
) PARTITION BY RANGE (day);

CREATE TABLE notification_trail (
    notification BIGINT NOT NULL,
    at BIGINT NOT NULL,
    step TEXT COLLATE "C" NOT NULL,
    detail TEXT NOT NULL,
    PRIMARY KEY (notification, at, step)
);

CREATE TABLE deliveries (
    day INTEGER NOT NULL,
    id BYTEA NOT NULL,
    notification BIGINT NOT NULL,
    namespace BIGINT NOT NULL,
    channel BIGINT NOT NULL,
    priority SMALLINT NOT NULL,
    state SMALLINT NOT NULL,
    waiting SMALLINT NOT NULL,
    dead BOOLEAN NOT NULL DEFAULT false,
    round INTEGER NOT NULL DEFAULT 0,
    attempt INTEGER NOT NULL DEFAULT 1,
    tried INTEGER NOT NULL DEFAULT 0,
    milliseconds BIGINT,
    created_at BIGINT NOT NULL,
    due_at BIGINT NOT NULL,
    released_at BIGINT,
    heard_at BIGINT,
    ended_at BIGINT,
    recipient TEXT COLLATE "C" NOT NULL,
    endpoint TEXT COLLATE "C" NOT NULL,
    locale TEXT COLLATE "C" NOT NULL,
    provider TEXT COLLATE "C",
    provider_id TEXT COLLATE "C",
    reason TEXT COLLATE "C",
    error TEXT COLLATE "C",
    PRIMARY KEY (id, day)
) PARTITION BY RANGE (day);
CREATE INDEX deliveries_ready ON deliveries (channel, priority, namespace, notification, due_at, id) WHERE waiting = 2;
CREATE INDEX deliveries_scheduled ON deliveries (channel, priority, due_at) WHERE waiting = 1;
CREATE INDEX deliveries_resting ON deliveries (notification) WHERE waiting = 3;
-- Of two indexes for one condition the wrong one could be taken: who asks by channel says `waiting >= 3`.
CREATE INDEX deliveries_resting_channel ON deliveries (channel, priority) WHERE waiting >= 3;
CREATE INDEX deliveries_out ON deliveries (channel, heard_at) WHERE waiting = 0 AND ended_at IS NULL;
CREATE INDEX deliveries_dead ON deliveries (ended_at, id) WHERE dead;
-- Whether a channel has dead letters at all.
CREATE INDEX deliveries_dead_of_channel ON deliveries (channel) WHERE dead;
CREATE INDEX deliveries_recipient ON deliveries (substr(id, 5, 4)) WHERE recipient <> '';

CREATE TABLE resting (
    namespace TEXT COLLATE "C" NOT NULL,
    template TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (namespace, template)
);

CREATE TABLE carried (
    day INTEGER NOT NULL,
    id BYTEA NOT NULL,
    delivery BYTEA NOT NULL,
    PRIMARY KEY (day, id)
);

CREATE TABLE trail (
    day INTEGER NOT NULL,
    id BYTEA NOT NULL, -- of the delivery
    at BIGINT NOT NULL,
    round INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    step TEXT COLLATE "C" NOT NULL,
    detail TEXT NOT NULL,
    PRIMARY KEY (id, day, at, round, attempt, step)
) PARTITION BY RANGE (day);

CREATE TABLE orphans (
    delivery BYTEA NOT NULL,
    at BIGINT NOT NULL,
    round INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    step TEXT COLLATE "C" NOT NULL,
    notification BYTEA NOT NULL, -- its id
    event BYTEA NOT NULL,
    PRIMARY KEY (delivery, at, round, attempt, step)
);
CREATE INDEX orphans_at ON orphans (at);

CREATE TABLE garbage (
    number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic TEXT COLLATE "C" NOT NULL,
    message TEXT COLLATE "C" NOT NULL,
    at BIGINT NOT NULL,
    reason TEXT NOT NULL,
    length BIGINT NOT NULL,
    bytes BYTEA NOT NULL,
    UNIQUE (topic, message)
);

CREATE TABLE definitions (
    hash TEXT COLLATE "C" PRIMARY KEY,
    definition BYTEA NOT NULL
);

CREATE TABLE definitions_in_force (
    namespace TEXT COLLATE "C" NOT NULL,
    template TEXT COLLATE "C" NOT NULL,
    since BIGINT NOT NULL,
    hash TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (namespace, template, since)
);

CREATE TABLE claims (
    namespace TEXT COLLATE "C" NOT NULL,
    template TEXT COLLATE "C" NOT NULL,
    key TEXT COLLATE "C" NOT NULL,
    delivery BYTEA NOT NULL,
    until BIGINT NOT NULL,
    PRIMARY KEY (namespace, template, key)
);
CREATE INDEX claims_until ON claims (until);

CREATE TABLE recipients (
    namespace TEXT COLLATE "C" NOT NULL,
    ord BIGINT NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    recipient TEXT NOT NULL,
    PRIMARY KEY (namespace, ord, id)
);
CREATE UNIQUE INDEX recipients_id ON recipients (namespace, id);

CREATE TABLE recipient_addresses (
    namespace TEXT COLLATE "C" NOT NULL,
    address TEXT COLLATE "C" NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (namespace, address, id)
);
CREATE INDEX recipient_addresses_id ON recipient_addresses (namespace, id);

CREATE TABLE recipient_labels (
    namespace TEXT COLLATE "C" NOT NULL,
    key TEXT COLLATE "C" NOT NULL,
    value TEXT COLLATE "C" NOT NULL,
    ord BIGINT NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    valid_from BIGINT NOT NULL,
    valid_to BIGINT,
    PRIMARY KEY (namespace, key, value, ord, id, valid_from)
);
CREATE INDEX recipient_labels_id ON recipient_labels (namespace, id) WHERE valid_to IS NULL;
CREATE INDEX recipient_labels_ended ON recipient_labels (valid_to) WHERE valid_to IS NOT NULL;

CREATE TABLE groups (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    namespace TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    UNIQUE (namespace, name)
);

CREATE TABLE members (
    group_id BIGINT NOT NULL,
    ord BIGINT NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    valid_from BIGINT NOT NULL,
    valid_to BIGINT,
    PRIMARY KEY (group_id, ord, id, valid_from)
);
CREATE INDEX members_id ON members (group_id, id) WHERE valid_to IS NULL;
CREATE INDEX members_ended ON members (valid_to) WHERE valid_to IS NOT NULL;

CREATE TABLE suppressions (
    namespace TEXT COLLATE "C" NOT NULL,
    medium TEXT COLLATE "C" NOT NULL,
    address TEXT COLLATE "C" NOT NULL,
    reason TEXT NOT NULL,
    since BIGINT NOT NULL,
    PRIMARY KEY (namespace, address, medium)
);

CREATE TABLE schedules (
    namespace TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    uid TEXT,
    last_due BIGINT,
    last_fired BIGINT,
    last_notification BYTEA,
    refused_due BIGINT,
    refused_declared BYTEA,
    refusal TEXT,
    missed BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (namespace, name)
);

CREATE TABLE keys (
    name TEXT COLLATE "C" PRIMARY KEY,
    digest BYTEA NOT NULL,
    scopes TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
