"""Many changes at once: of ten thousand documents, of a thousand tenants, of hundreds of collections."""

from __future__ import annotations

from pathlib import Path

from tests.support.named import collection, fill, named, tenants_of
from tests.support.things import keep_images, things, until_equal
from worker.embedded import Services
from worker.mapping import row_id

_MANY = 10_000
_TENANTS = 1000
_COLLECTIONS = 40


async def test_bulk_writes_of_ten_thousand(services: Services, tmp_path: Path) -> None:
    async with things(services, tmp_path, "things") as w:
        rows = w.mongo["things"]
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await until_equal(w, "things")
        await rows.insert_many([{"_id": n, "n": n} for n in range(_MANY)])
        await rows.update_many({}, {"$set": {"text": "changed"}, "$inc": {"n": 1}})
        await until_equal(w, "things")
        await keep_images(w, "things")
        await rows.update_many({}, {"$inc": {"n": 1}})
        await rows.delete_many({"_id": {"$gte": _MANY // 2}})
        await until_equal(w, "things")
        await rows.delete_many({})
        await until_equal(w, "things")
        assert await w.value("SELECT count(*) FROM crossfade.dead_letter") == 0


async def test_a_thousand_tenants_change_at_once(services: Services, tmp_path: Path) -> None:
    async with things(services, tmp_path, "things", tenant="path: owner") as w:
        rows = w.mongo["things"]
        tenants = [f"tenant {n}" for n in range(_TENANTS)]
        await rows.insert_many(
            [{"_id": f"{owner} {n}", "owner": owner, "n": n} for owner in tenants for n in range(3)]
        )
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await until_equal(w, "things")
        await rows.update_many({}, {"$inc": {"n": 1}})
        await rows.update_many({"n": 1}, [{"$set": {"owner": {"$concat": ["new ", "$owner"]}}}])  # all move
        await rows.delete_many({"n": 3})
        await until_equal(w, "things")
        assert len(await tenants_of(w, "things")) == 2 * _TENANTS
        assert await w.value("SELECT count(*) FROM crossfade.tenant") == 2 * _TENANTS


async def test_collections_of_many_tenants_change_at_once(services: Services, tmp_path: Path) -> None:
    async with named(services, tmp_path, "collection") as w:

        def of(tenant: int, name: str) -> object:
            return collection(w, "collection", f"t{tenant}", name)

        for tenant in range(_COLLECTIONS):
            await fill(of(tenant, "customers"), of(tenant, "orders"), 6)
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.settled()
        for tenant in range(_COLLECTIONS):
            await w.mongo[f"t{tenant}_orders"].update_many({}, {"$inc": {"total": 1}})
        await w.settled()
        assert await w.unequal() == []
        assert await tenants_of(w, "orders") == {row_id(f"t{n}"): 6 for n in range(_COLLECTIONS)}
