"""Ids that are unique in one tenant's database only."""

from __future__ import annotations

from pathlib import Path

from bson import ObjectId

from tests.support.named import collection, named, order, tenants_of
from worker.embedded import Services
from worker.mapping import row_id


async def test_the_same_objectid_in_two_databases_is_told_and_neither_document_touches_the_other(
    services: Services, tmp_path: Path
) -> None:
    """As where every tenant's database was made from one template."""
    async with named(services, tmp_path, "database") as w:
        shared, alone = ObjectId(), ObjectId()
        first, second = (collection(w, "database", tenant, "customers") for tenant in "ab")
        await first.insert_many([{"_id": shared, "name": "first"}, {"_id": alone, "name": "alone"}])
        await first.database["orders"].insert_one(order(1, ObjectId()))
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.settled()
        await second.insert_one({"_id": shared, "name": "second"})
        await second.update_one({"_id": shared}, {"$set": {"name": "changed"}})
        await second.delete_one({"_id": shared})
        await second.insert_one({"_id": shared, "name": "again"})
        await w.settled()
        kinds = "SELECT count(*) FROM crossfade.dead_letter WHERE state = 'dead' AND kind = 'collision'"
        assert await w.value(kinds) >= 2
        assert await w.value("SELECT name FROM customers WHERE id = $1", row_id(shared)) == "first"
        await first.update_one({"_id": shared}, {"$set": {"name": "mine"}})
        await first.delete_one({"_id": alone})
        await w.settled()
        assert await w.value("SELECT name FROM customers WHERE id = $1", row_id(shared)) == "mine"
        assert await tenants_of(w, "customers") == {row_id("a"): 1}
        assert await w.unequal() == []
