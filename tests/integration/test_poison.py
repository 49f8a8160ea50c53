"""Documents that cannot be applied, in every place of a large batch: each is a letter, the others arrive."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import bson
import pytest
from bson import Timestamp
from bson.binary import Binary
from bson.raw_bson import RawBSONDocument

from tests.support.letters import letters
from tests.support.long import LONG
from tests.support.world import World, world
from topics import Event, Operation, Origin, Source, Version, encode
from worker.apply.batch import Item, read
from worker.apply.worker import ApplyWorker
from worker.broker.access import access
from worker.embedded import Services
from worker.settings import Settings

SIZE = 300
PLACES = {
    "first": [0],
    "middle": [SIZE // 2],
    "last": [SIZE - 1],
    "two adjacent": [100, 101],
    "scattered": [0, 7, 8, 150, SIZE - 1],
    "all": list(range(SIZE)),
}
# What is wrong, the field that is, and the letter's state and kind.
KINDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "the mapping refuses": ({"title": 7}, "dead", "mapping"),
    "no text holds NUL": ({"title": "a\0b"}, "dead", "mapping"),
    "a check refuses": ({"title": "refused"}, "dead", "data"),
    "a trigger refuses": ({"title": "raised"}, "dead", "data"),
    "a unique value is taken": ({"slug": "taken"}, "parked", "unique"),
}
WALLS = """
ALTER TABLE pages ADD CHECK (title <> 'refused');
CREATE UNIQUE INDEX ON pages (slug);
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN IF NEW.title = 'raised' THEN RAISE 'no'; END IF; RETURN NEW; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON pages FOR EACH ROW EXECUTE FUNCTION refuse();
ALTER TABLE pages ENABLE ALWAYS TRIGGER refuse;
INSERT INTO tenants (id, name, subdomain) VALUES ('00000000-0000-0000-0000-000000000001', 'n', 's');
INSERT INTO pages (tenant_id, title, slug) VALUES ('00000000-0000-0000-0000-000000000001', 't', 'taken');
"""


def _event(w: World, id_: UUID, tenant: UUID, offset: int, wrong: dict[str, Any]) -> bytes:
    document = {
        "_id": Binary.from_uuid(id_),
        "tenantId": Binary.from_uuid(tenant),
        "title": "good",
        "slug": str(id_),
        **wrong,
    }
    return encode(
        Event(
            operation=Operation.UPSERT,
            namespace=f"{w.name}.pages",
            id=id_,
            version=Version.snapshot(Timestamp(1_800_000_000, offset + 1)),
            wall=datetime.now(UTC),
            source=Source.STREAM,
            origin=Origin(UUID(int=1)),
            document=RawBSONDocument(bson.encode(document)),
        )
    )


@pytest.mark.parametrize("role", ["replica", "origin"] if LONG else ["replica"])
async def test_poison_in_every_place_of_a_batch(services: Services, tmp_path: Path, role: str) -> None:
    async with world(services, tmp_path) as w:
        connection = await w.connect()
        await connection.execute(WALLS)
        settings = Settings(
            mongo_uri=services.mongo_uri,
            postgres_dsn=w.env["CROSSFADE_POSTGRES_DSN"],
            kafka_bootstrap=services.kafka_bootstrap,
            mapping=w.mapping_file,
            topic_prefix=w.name,
            replication_role=role,
        )
        worker = ApplyWorker(settings, await access(settings), w.mapping)
        await worker.open()
        tenant = await connection.fetchval("SELECT id FROM tenants")
        offset = 0
        for kind, (wrong, state, letter_kind) in KINDS.items():
            for place, poisoned in PLACES.items():
                told = f"{kind}, {place}"
                ids = [uuid4() for _ in range(SIZE)]
                first = offset
                items: list[Item] = []
                for number, id_ in enumerate(ids):
                    value = _event(w, id_, tenant, offset, wrong if number in poisoned else {})
                    items.append(read(Item("t", 0, offset, value), worker._find))
                    offset += 1
                await worker._write(items)
                found = [letter for letter in await letters(w) if letter["offset"] >= first]
                expected = {(first + number, state, letter_kind) for number in poisoned}
                assert {(one["offset"], one["state"], one["kind"]) for one in found} == expected, told
                assert len(found) == len(poisoned), told
                arrived = await connection.fetch("SELECT id FROM pages WHERE id = ANY($1::uuid[])", ids)
                good = {id_ for number, id_ in enumerate(ids) if number not in poisoned}
                assert {row[0] for row in arrived} == good, told
        [progress] = await connection.fetch("SELECT * FROM crossfade.partition_progress")
        counted = await connection.fetch("SELECT state::text, count(*) FROM crossfade.dead_letter GROUP BY 1")
        by_state = {row[0]: row[1] for row in counted}
        assert (progress["records"], progress["next_offset"]) == (offset, offset)
        assert (progress["dead_lettered"], progress["parked"]) == (by_state["dead"], by_state["parked"])
        assert progress["applied"] == offset - by_state["dead"] - by_state["parked"]
        await worker.close()
        await connection.close()
