-- A copy over live rows ends with the removal of what MongoDB no longer has (PROTOCOL.md C7).

SET LOCAL ROLE crossfade_owner;

ALTER TYPE crossfade.copy_state ADD VALUE 'removing' AFTER 'copying';

-- clusterTime at or before which the copy began: what it found is newer, what is older may be gone.
ALTER TABLE crossfade.collection ADD COLUMN copy_began_time bigint;

-- Lives of the change stream so far. After the first, documents may have gone without an event.
ALTER TABLE crossfade.checkpoint ADD COLUMN incarnations integer NOT NULL DEFAULT 1;

RESET ROLE;
