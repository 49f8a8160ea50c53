-- Batches that were rolled back, and the documents that wait to be fetched again (PROTOCOL.md A9).

SET LOCAL ROLE crossfade_owner;

-- What was done and by whom is in the audit log.
CREATE TABLE crossfade.batch_rollback (
    batch_id bigint PRIMARY KEY,
    rolled_back_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Held documents, found without reading the ledger. An update of the ledger stays within its page (HOT) while
-- it changes none of these columns: batch_id, which every update changes, must never be in an index.
CREATE INDEX document_held ON crossfade.document (collection_id, row_id) WHERE state = 'refetch';

GRANT SELECT ON crossfade.batch_rollback TO crossfade_sync, crossfade_reader;
GRANT INSERT (batch_id) ON crossfade.batch_rollback TO crossfade_sync;

RESET ROLE;
