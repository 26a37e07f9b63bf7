-- Rows of every kind, so that the planner knows what the tables are like: for the tests of plans.
INSERT INTO channels (name) SELECT 'shop/channel-' || n FROM generate_series(1, 5) AS n;
INSERT INTO notifications (id, day, namespace, template, sender, body, priority, metadata, sensitive, accepted_at,
    resolve_at, pending, resolved, cursor, cancelled_at, ended_at)
SELECT decode(md5(n::text), 'hex'), (SELECT min(day) FROM days) + n % 8, 'shop-' || n % 3, 'template-' || n % 7,
    'orders', 'body', n % 4, '{}', false, n, n, CASE n % 100 WHEN 0 THEN 2 WHEN 1 THEN 1 ELSE 0 END, true, '{}',
    CASE n % 90 WHEN 0 THEN n END, CASE WHEN n % 20 > 2 THEN n END
FROM generate_series(1, 10000) AS n;
INSERT INTO requests SELECT day, seq, false, 'request' FROM notifications;
INSERT INTO deliveries (day, id, notification, namespace, channel, priority, state, waiting, dead, created_at, due_at,
    heard_at, ended_at, recipient, endpoint, locale)
SELECT day, substr(id, 1, 4) || decode(substr(md5(n::text), 1, 8), 'hex') || substr(id, 5, 4), seq, seq % 3, 1 + seq % 5,
    priority, 1, CASE WHEN ended_at IS NULL THEN abs(hashint8(seq)) % 4 ELSE 0 END, seq % 50 = 9 AND ended_at IS NOT NULL, seq, seq, seq,
    ended_at, 'person-' || n, 'person@mail.example', 'ko'
FROM notifications CROSS JOIN generate_series(1, 3) AS n;
INSERT INTO trail SELECT day, id, 1, 0, 1, 'retrying', '{}' FROM deliveries;
INSERT INTO carried SELECT day, id, 'delivery' FROM deliveries WHERE state % 2 = 1;
INSERT INTO notification_trail SELECT seq, 1, 'prioritized', '{}' FROM notifications;
INSERT INTO definitions SELECT md5(n::text), 'definition' FROM generate_series(1, 5000) AS n;
INSERT INTO definitions_in_force SELECT 'shop-' || n % 3, 'template-' || n % 500, n, md5(n::text)
FROM generate_series(1, 5000) AS n;
INSERT INTO claims SELECT 'shop-' || n % 3, 'template-' || n % 7, n::text, 'delivery', n FROM generate_series(1, 5000) AS n;
INSERT INTO recipients SELECT 'shop-' || n % 3, n, 'person-' || n, '{}' FROM generate_series(1, 9000) AS n;
INSERT INTO recipient_addresses SELECT namespace, id || '@mail.example', id FROM recipients;
INSERT INTO recipient_labels SELECT namespace, 'tier', 'tier-' || ord % 50, ord, id, 1,
    CASE ord % 10 WHEN 0 THEN ord END FROM recipients;
INSERT INTO recipient_labels SELECT namespace, 'city', 'city-' || ord % 90, ord, id, 1, NULL FROM recipients;
INSERT INTO groups (namespace, name) SELECT 'shop-' || n % 3, 'group-' || n FROM generate_series(1, 9) AS n;
INSERT INTO members SELECT 1 + ord % 9, ord, id, 1, CASE ord % 10 WHEN 0 THEN ord END FROM recipients;
INSERT INTO suppressions SELECT namespace, 'email', id || '@mail.example', 'opted-out', 1 FROM recipients;
INSERT INTO schedules SELECT 'shop-' || n % 3, 'schedule-' || n, 1 FROM generate_series(1, 5000) AS n;
ANALYZE;
