-- Real collections that are no longer there, or no longer under their name.

SET LOCAL ROLE crossfade_owner;

-- Where names hold the tenant, only the name tells whose documents a collection had (PROTOCOL.md C7).
CREATE TABLE crossfade.gone_collection (
    namespace text PRIMARY KEY,               -- the real one's
    collection text NOT NULL,                 -- the logical one's
    seen_at timestamptz NOT NULL DEFAULT now()
);

GRANT SELECT ON crossfade.gone_collection TO crossfade_sync, crossfade_reader;
GRANT INSERT (namespace, collection) ON crossfade.gone_collection TO crossfade_sync;

RESET ROLE;
