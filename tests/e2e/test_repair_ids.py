"""A repair is about the document of the row that does not fit, and about no other: ids are never guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from tests.support.things import things, until_equal
from tests.support.world import World, once
from worker.embedded import Services
from worker.mapping import row_id

_LETTERS = "SELECT count(*) FROM crossfade.dead_letter"


async def told(w: World, *command: str) -> tuple[int, dict[str, Any]]:
    code, output = await once(w, *command, "--json")
    return code, orjson.loads(output[output.index("{") : output.rindex("}") + 1])


async def test_a_row_whose_id_is_a_hash_is_the_document_that_the_ledger_knows_or_is_left(
    services: Services, tmp_path: Path
) -> None:
    async with things(services, tmp_path, "a") as w:
        await w.mongo["a"].insert_many([{"_id": "one", "n": 1}, {"_id": "two", "n": 2}])
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await until_equal(w, "a")
        # Of neither row its own note tells the id; of the second one the ledger knows nothing either.
        await w.value("UPDATE a SET rest = NULL WHERE id = $1", row_id("one"))
        copied = "INSERT INTO a (id, tenant_id, n) SELECT $1, tenant_id, 3 FROM a LIMIT 1"
        await w.value(copied, row_id("nobody knows"))
        code, found = await told(w, "reconcile", "--once")
        assert (code, found["mismatches"]) == (1, 2), found
        kinds = {one["row_id"]: one["kind"] for one in found["listed"]}
        assert kinds == {str(row_id("one")): "different", str(row_id("nobody knows")): "extra"}
        code, done = await told(w, "repair")
        assert (code, done["documents"], done["absences"], done["lost"], done["left"]) == (1, 1, 0, 1, 0)
        assert await w.value(_LETTERS) == 0
        # Whoever has this id is not refused for a tombstone of a guess.
        await w.mongo["a"].insert_one({"_id": "nobody knows", "n": 4})
        await until_equal(w, "a")
        assert await w.value(_LETTERS) == 0
        code, found = await told(w, "reconcile", "--once")
        assert (code, found["equal"]) == (0, True), found
