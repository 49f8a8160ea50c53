-- What Crossfade knows of the migration. Owned by crossfade_owner; removed whole by `finish`.

SET LOCAL ROLE crossfade_owner;

CREATE TYPE crossfade.phase AS ENUM (
    'mongo', 'draining', 'postgres', 'complete', 'aborting', 'rolling_back', 'opening'
);

-- A tenant's writes: where they go. Rows appear with the tenant's first document.
CREATE TABLE crossfade.tenant (
    tenant_id uuid PRIMARY KEY,
    phase crossfade.phase NOT NULL DEFAULT 'mongo',
    epoch bigint NOT NULL DEFAULT 0,
    floor bigint NOT NULL DEFAULT 0,          -- clusterTime below which nothing may change its rows
    changed_at timestamptz NOT NULL DEFAULT now(),
    seen_at timestamptz NOT NULL DEFAULT now()
);

CREATE TYPE crossfade.copy_state AS ENUM ('pending', 'copying', 'copied', 'invalid');

-- A mapped collection, its copy's progress, and a small number for the ledger's key.
CREATE TABLE crossfade.collection (
    collection_id smallint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    namespace text NOT NULL UNIQUE,
    mapping_hash text NOT NULL,
    copy_state crossfade.copy_state NOT NULL DEFAULT 'pending',
    copy_incarnation uuid,
    copy_cursor bytea,                        -- BSON {"": _id} of the last document of the last whole chunk
    copied bigint NOT NULL DEFAULT 0,
    estimated bigint NOT NULL DEFAULT 0,
    copy_started_at timestamptz,
    copy_finished_at timestamptz
);

-- How far a publisher's change stream is durably in Kafka (PROTOCOL.md C4, C6).
CREATE TABLE crossfade.checkpoint (
    publisher text PRIMARY KEY,
    incarnation uuid NOT NULL,
    started_time bigint NOT NULL,             -- S: clusterTime at which this incarnation's stream began
    token bytea,                              -- BSON of the resume token; never inside a clusterTime (C1)
    token_time bigint,
    saved_at timestamptz NOT NULL DEFAULT now()
);

CREATE TYPE crossfade.document_state AS ENUM ('live', 'deleted', 'refetch');

-- The ledger: one row per document ever seen. Only a strictly greater version changes it (A1).
CREATE TABLE crossfade.document (
    collection_id smallint NOT NULL,
    row_id uuid NOT NULL,
    tenant_id uuid,
    version_time bigint NOT NULL,
    version_order integer NOT NULL,
    state crossfade.document_state NOT NULL,
    batch_id bigint NOT NULL,
    document_id bytea,                        -- BSON {"": _id} where the row id cannot be turned back
    PRIMARY KEY (collection_id, row_id)
) WITH (fillfactor = 80);

CREATE SEQUENCE crossfade.batch_id_seq;

-- The migration log: the events applied in one transaction. `records` counts what was read; the outcomes
-- must add up to it, or the transaction fails (A8).
CREATE TABLE crossfade.batch (
    batch_id bigint PRIMARY KEY,
    source text NOT NULL CHECK (source IN ('topic', 'retry')),
    worker text NOT NULL,
    started_at timestamptz NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    records integer NOT NULL,
    applied integer NOT NULL,
    superseded integer NOT NULL,
    absent integer NOT NULL,
    echo integer NOT NULL,
    switched integer NOT NULL,
    parked integer NOT NULL,
    dead_lettered integer NOT NULL,
    control integer NOT NULL,
    partitions jsonb NOT NULL,                -- [[topic, partition, first offset, last offset], ...]
    CONSTRAINT outcomes_add_up CHECK (
        records = applied + superseded + absent + echo + switched + parked + dead_lettered + control
    )
);

-- Of each topic partition: the next offset to read, in the same transaction as the rows (A2), all outcomes
-- so far (A8; a record read again counts again), and the newest heartbeat that has come through.
CREATE TABLE crossfade.partition_progress (
    topic text NOT NULL,
    partition integer NOT NULL,
    next_offset bigint NOT NULL,
    records bigint NOT NULL,
    applied bigint NOT NULL,
    superseded bigint NOT NULL,
    absent bigint NOT NULL,
    echo bigint NOT NULL,
    switched bigint NOT NULL,
    parked bigint NOT NULL,
    dead_lettered bigint NOT NULL,
    control bigint NOT NULL,
    heartbeat_at timestamptz,
    heartbeat_applied_at timestamptz,
    changed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, partition),
    CONSTRAINT outcomes_add_up CHECK (
        records = applied + superseded + absent + echo + switched + parked + dead_lettered + control
    )
) WITH (fillfactor = 50);

CREATE TYPE crossfade.dead_letter_state AS ENUM ('parked', 'dead', 'healed', 'discarded');

-- Events that could not be applied as they are, whole. A record read again finds its own row.
CREATE TABLE crossfade.dead_letter (
    dead_letter_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    state crossfade.dead_letter_state NOT NULL,
    kind text NOT NULL,                       -- mapping, data, foreign_key, unique, envelope, ...
    reason text NOT NULL,                     -- names columns, types and constraints; never a value
    namespace text NOT NULL,
    document_id bytea,                        -- BSON {"": _id}
    row_id uuid,
    tenant_id uuid,
    version_time bigint,
    version_order integer,
    topic text NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    event bytea NOT NULL,                     -- the record's value as it was read
    attempts integer NOT NULL DEFAULT 1,
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    next_attempt_at timestamptz,
    batch_id bigint NOT NULL,
    UNIQUE (topic, partition, "offset")
);
CREATE INDEX ON crossfade.dead_letter (next_attempt_at) WHERE state = 'parked';
CREATE INDEX ON crossfade.dead_letter (tenant_id) WHERE state IN ('parked', 'dead');

GRANT USAGE ON SCHEMA crossfade TO crossfade_sync, crossfade_reader;
GRANT SELECT ON ALL TABLES IN SCHEMA crossfade TO crossfade_sync, crossfade_reader;
GRANT INSERT, UPDATE ON
    crossfade.collection, crossfade.checkpoint, crossfade.document, crossfade.partition_progress,
    crossfade.dead_letter
    TO crossfade_sync;
GRANT INSERT ON crossfade.batch TO crossfade_sync;
-- The sync role meets new tenants and share-locks their rows (which needs UPDATE of some column), but can
-- never set a phase.
GRANT INSERT (tenant_id), UPDATE (seen_at) ON crossfade.tenant TO crossfade_sync;
GRANT USAGE ON SEQUENCE crossfade.batch_id_seq TO crossfade_sync;

RESET ROLE;
