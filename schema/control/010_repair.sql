-- The repair counts what it has done within a day.

SET LOCAL ROLE crossfade_owner;

CREATE INDEX ON crossfade.audit (action, at);

RESET ROLE;
