-- Kept for the results of reconciling; nothing yet.

SET LOCAL ROLE crossfade_owner;

RESET ROLE;
