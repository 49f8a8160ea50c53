-- Dead letters: found by document, bounded in time, settled by people; and what people did.

SET LOCAL ROLE crossfade_owner;

-- Since when a parked event has waited: its arrival, or its last replay. Waiting is bounded.
ALTER TABLE crossfade.dead_letter ADD COLUMN parked_at timestamptz;
UPDATE crossfade.dead_letter SET parked_at = first_seen_at WHERE state = 'parked';

-- A newer event of a document closes the letters that stand of it.
CREATE INDEX ON crossfade.dead_letter (row_id) WHERE state IN ('parked', 'dead');
CREATE INDEX ON crossfade.dead_letter (first_seen_at) WHERE state IN ('parked', 'dead');

-- What people did. Nobody changes or removes a row, and whoever adds one cannot say when or as which user.
CREATE TABLE crossfade.audit (
    audit_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    database_user name NOT NULL DEFAULT session_user,
    os_user text NOT NULL,                    -- as the command found it: advice, no proof
    action text NOT NULL,                     -- dead-letters replay, dead-letters discard, ...
    subject jsonb NOT NULL,                   -- what it was done to: ids and states, never a value of a row
    reason text
);

GRANT SELECT ON crossfade.audit TO crossfade_sync, crossfade_reader;
GRANT INSERT (os_user, action, subject, reason) ON crossfade.audit TO crossfade_sync;

RESET ROLE;
