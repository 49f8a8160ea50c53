-- The way back: what the application wrote in PostgreSQL is brought to MongoDB as well, until `complete`.

SET LOCAL ROLE crossfade_owner;

-- Documents that a committed transaction touched, to be read and sent. One that is taken is gone when Kafka
-- has acknowledged it; one row for each document and statement.
CREATE TABLE crossfade.outbox (
    outbox_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    collection_id smallint NOT NULL,
    row_id uuid NOT NULL,
    tenant_id uuid NOT NULL,                  -- under which its rows are seen
    epoch bigint NOT NULL,                    -- the tenant's, when it was written
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX ON crossfade.outbox (tenant_id);
-- It is empty most of the time: what is dead is to be cleaned up early, or each look would walk over it.
ALTER TABLE crossfade.outbox SET (
    autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_cost_delay = 0
);

-- The versions of what is sent. Drawn after rows of the outbox are taken and before the documents' rows are
-- read, so that the greatest shows the last commit. CACHE 1: a session must not hold numbers in store.
CREATE SEQUENCE crossfade.reverse_version CACHE 1;

-- Why a tenant's way back is broken: MongoDB would not have what PostgreSQL has.
CREATE TABLE crossfade.way_back_fault (
    tenant_id uuid NOT NULL,
    kind text NOT NULL,                       -- unmapped, unreadable, large, refused, nowhere
    namespace text NOT NULL,                  -- the logical collection's
    subject text NOT NULL,                    -- a column, or a row id; never a value
    reason text NOT NULL,
    first_seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant_id, kind, namespace, subject)
);

-- Barriers of rollbacks: asked for, and then sent to every partition of the reverse topics. MongoDB tells which
-- of them have arrived.
CREATE TABLE crossfade.reverse_barrier (
    barrier_id uuid PRIMARY KEY,
    asked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    sent_at timestamptz,
    partitions integer                        -- to which it was sent
);

GRANT SELECT ON crossfade.outbox, crossfade.way_back_fault, crossfade.reverse_barrier
    TO crossfade_sync, crossfade_reader, crossfade_control;
GRANT INSERT, DELETE ON crossfade.outbox TO crossfade_sync;
-- FOR UPDATE SKIP LOCKED needs the right to change some column.
GRANT UPDATE (at) ON crossfade.outbox TO crossfade_sync;
GRANT INSERT, DELETE ON crossfade.way_back_fault TO crossfade_sync, crossfade_control;
GRANT INSERT, DELETE ON crossfade.reverse_barrier TO crossfade_control;
GRANT UPDATE (sent_at, partitions) ON crossfade.reverse_barrier TO crossfade_sync;
GRANT SELECT, USAGE, UPDATE ON SEQUENCE crossfade.reverse_version TO crossfade_sync;

-- Ids for rows that are born here, of collections whose ids are ObjectIds: a fresh ObjectId as the UUIDv8
-- that worker/mapping/ids.py makes of it. Four bytes of seconds, eight random ones.
CREATE FUNCTION crossfade.objectid_uuid() RETURNS uuid
    LANGUAGE sql VOLATILE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
RETURN (
    SELECT format('%s-%s-8%s-%s-%s',
        substr(o, 1, 8), substr(o, 9, 4), substr(o, 13, 3),
        lpad(to_hex((2::bigint << 14) | (low >> 22)), 4, '0'),
        lpad(to_hex(((low & x'3fffff'::bigint) << 26) | x'78666f'::bigint), 12, '0'))::uuid
    FROM (
        SELECT o, ('x' || substr(o, 16, 9))::bit(36)::bigint AS low
        FROM (
            SELECT lpad(to_hex(extract(epoch FROM clock_timestamp())::bigint), 8, '0')
                || substr(replace(gen_random_uuid()::text, '-', ''), 1, 8)
                || substr(replace(gen_random_uuid()::text, '-', ''), 1, 8) AS o
        ) AS made
    ) AS split
);
GRANT EXECUTE ON FUNCTION crossfade.objectid_uuid() TO application_role;

RESET ROLE;
