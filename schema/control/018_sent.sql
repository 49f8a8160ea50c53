-- What the way back has sent: beside what MongoDB remembers, for a record that Kafka loses never comes there.

SET LOCAL ROLE crossfade_owner;

CREATE TABLE crossfade.sent (
    tenant_id uuid NOT NULL,
    collection_id smallint NOT NULL,
    row_id uuid NOT NULL,
    namespace text NOT NULL,                  -- the real collection's
    document_key bytea NOT NULL,              -- topics/keys.py, document_key
    version bigint NOT NULL,                  -- the greatest with which it was sent
    PRIMARY KEY (collection_id, row_id, tenant_id)
);
CREATE INDEX ON crossfade.sent (tenant_id, version);

GRANT SELECT ON crossfade.sent TO crossfade_sync, crossfade_reader, crossfade_control;
GRANT INSERT ON crossfade.sent TO crossfade_sync;
GRANT UPDATE (namespace, document_key, version) ON crossfade.sent TO crossfade_sync;
-- A rollback has documents that MongoDB lacks sent again.
GRANT INSERT ON crossfade.outbox TO crossfade_control;

RESET ROLE;
