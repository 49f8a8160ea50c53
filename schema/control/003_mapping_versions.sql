-- A collection's rows are made by one mapping at a time: the one whose hash its row has.

SET LOCAL ROLE crossfade_owner;

-- One row. Every batch of apply share-locks it and compares; who accepts another mapping for a collection
-- changes it first. So no batch of the old mapping commits after the new one was accepted.
CREATE TABLE crossfade.mapping (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    changes bigint NOT NULL                   -- mappings accepted in place of others, so far
);
INSERT INTO crossfade.mapping (changes) VALUES (0);

-- Which copy is the present one: whoever still works on an earlier one can no longer move it on or end it.
ALTER TABLE crossfade.collection ADD COLUMN copies integer NOT NULL DEFAULT 0;
UPDATE crossfade.collection SET copies = 1 WHERE copy_incarnation IS NOT NULL;
COMMENT ON COLUMN crossfade.collection.copy_cursor IS
    'BSON {"": _id} of the last document in Kafka for certain; with "ns" where several collections are one';

GRANT SELECT ON crossfade.mapping TO crossfade_sync, crossfade_reader;
GRANT UPDATE (changes) ON crossfade.mapping TO crossfade_sync;

RESET ROLE;
