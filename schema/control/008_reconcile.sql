-- The reconciler: what it has compared, how far it is, and what does not fit.

SET LOCAL ROLE crossfade_owner;

-- clusterTime of the newest heartbeat that a partition has brought: all changes before it are applied.
ALTER TABLE crossfade.partition_progress ADD COLUMN heartbeat_time bigint;

-- Generations: a full one looks at every document and every row, one of changes at what was changed since.
CREATE TABLE crossfade.generation (
    generation bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('full', 'changes')),
    tenant_id uuid,                           -- NULL: all of them
    incarnation uuid,                         -- of the change stream, when it began
    mapping_changes bigint NOT NULL,          -- crossfade.mapping's, when it began
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz,                  -- NULL: under way, or given up
    given_up boolean NOT NULL DEFAULT false,  -- what it had found no longer proves anything
    place jsonb,                              -- where a full one goes on
    documents bigint NOT NULL DEFAULT 0,      -- compared, those rechecked too
    rows bigint NOT NULL DEFAULT 0,           -- looked at for a document that MongoDB no longer has
    seconds double precision NOT NULL DEFAULT 0,
    settling bigint,                          -- at its end
    mismatches bigint                         -- at its end
);
CREATE INDEX ON crossfade.generation (started_at);

-- Counts and sums of digests of both sides, of one full generation. A document that changes while it is
-- walked through counts as it was read.
CREATE TABLE crossfade.generation_sum (
    generation bigint NOT NULL REFERENCES crossfade.generation ON DELETE CASCADE,
    namespace text NOT NULL,                  -- the logical collection's
    tenant_id uuid,                           -- NULL where all tenants share it, or none could be told
    mongo_documents bigint NOT NULL,
    mongo_hash numeric(39) NOT NULL,          -- modulo 2^128
    postgres_documents bigint NOT NULL,
    postgres_hash numeric(39) NOT NULL,
    first_read_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_read_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE NULLS NOT DISTINCT (generation, namespace, tenant_id)
);

-- Documents that did not fit when they were looked at last. Digests, types and paths; never a value.
CREATE TABLE crossfade.mismatch (
    namespace text NOT NULL,                  -- the logical collection's
    row_id uuid NOT NULL,
    collection text NOT NULL,                 -- the real one's namespace
    document_id bytea,                        -- BSON {"": _id}
    tenant_id uuid,
    state text NOT NULL CHECK (state IN ('settling', 'real')),
    kind text NOT NULL,                       -- missing, extra, different, tenant, orphan, duplicate, unreadable
    reason text NOT NULL,
    fields jsonb NOT NULL DEFAULT '[]',       -- [[path, type in MongoDB or null, type in PostgreSQL or null], ...]
    generation bigint NOT NULL,               -- that saw it first
    first_seen_at timestamptz NOT NULL,
    since timestamptz NOT NULL,               -- seen as it is now
    checked_at timestamptz NOT NULL,
    changes integer NOT NULL DEFAULT 0,       -- times that it was seen otherwise
    observed_time bigint,                     -- clusterTime of MongoDB's reading, of `since`
    version_time bigint,
    version_order integer,
    mongo_digest numeric(39),                 -- NULL: no document
    postgres_digest numeric(39),              -- NULL: no rows
    repaired_at timestamptz,                  -- sent anew, and not yet seen to fit
    repairs integer NOT NULL DEFAULT 0,
    PRIMARY KEY (namespace, row_id)
);
CREATE INDEX ON crossfade.mismatch (tenant_id);

GRANT SELECT ON crossfade.generation, crossfade.generation_sum, crossfade.mismatch
    TO crossfade_sync, crossfade_reader;
GRANT INSERT, UPDATE, DELETE ON crossfade.generation, crossfade.generation_sum, crossfade.mismatch
    TO crossfade_sync;

RESET ROLE;
