-- What a generation proves, and for whom.

SET LOCAL ROLE crossfade_owner;

-- What came first, the end of a generation or the sight of a mismatch: clocks go back.
CREATE SEQUENCE crossfade.moment;

ALTER TABLE crossfade.generation
    ADD COLUMN copies bigint NOT NULL DEFAULT 0,  -- begun so far, when it began: each writes rows anew
    ADD COLUMN began_time bigint,                 -- a clusterTime before all that it read
    ADD COLUMN held bigint,                       -- at its end: documents that wait to be fetched again
    ADD COLUMN ended_moment bigint,               -- NULL: not ended
    -- Tenants of which something was wrong at its end, known then or later; the nil UUID: any of them.
    ADD COLUMN unclean uuid[] NOT NULL DEFAULT '{}';

-- The tenant under which rows stand, where the document's, `tenant_id`, is another one.
ALTER TABLE crossfade.mismatch
    ADD COLUMN row_tenant_id uuid,
    ADD COLUMN seen_moment bigint NOT NULL DEFAULT nextval('crossfade.moment');  -- first
CREATE INDEX ON crossfade.mismatch (row_tenant_id);

GRANT USAGE ON SEQUENCE crossfade.moment TO crossfade_sync;

RESET ROLE;
