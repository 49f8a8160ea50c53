-- The copy is held back: by people, collection by collection, and by limits that change while it runs.

SET LOCAL ROLE crossfade_owner;

ALTER TABLE crossfade.collection
    ADD COLUMN copy_paused boolean NOT NULL DEFAULT false,
    -- Of the present copy, without pauses and without the time when no publisher ran: seconds so far, and
    -- documents a second lately.
    ADD COLUMN copy_seconds double precision NOT NULL DEFAULT 0,
    ADD COLUMN copy_rate double precision;

-- One row of limits. NULL: what publish's settings say; 0: none.
CREATE TABLE crossfade.copy_limits (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    rate double precision CHECK (rate >= 0),                                -- documents a second
    max_lag double precision CHECK (max_lag >= 0),                          -- seconds
    max_replication_lag double precision CHECK (max_replication_lag >= 0)   -- seconds
);
INSERT INTO crossfade.copy_limits DEFAULT VALUES;

-- What a publisher's copy goes by and what holds it, as the publisher told it last.
ALTER TABLE crossfade.checkpoint
    ADD COLUMN copy_standing jsonb,
    ADD COLUMN copy_standing_at timestamptz;

GRANT SELECT ON crossfade.copy_limits TO crossfade_sync, crossfade_reader;
GRANT UPDATE (rate, max_lag, max_replication_lag) ON crossfade.copy_limits TO crossfade_sync;

RESET ROLE;
