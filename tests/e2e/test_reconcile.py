"""Both databases are compared document by document: what is planted is found, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from examples.spaces.rebuild import row_id
from tests.support.world import World, once, world
from worker.embedded import Services
from worker.extended_json import extended


async def compared(w: World, *options: str) -> tuple[int, dict[str, Any]]:
    code, told = await once(w, "reconcile", "--once", "--json", "--within", "20", *options)
    return code, orjson.loads(told[told.index("{") :])


async def test_what_is_equal_is_told_so_and_one_changed_value_is_not(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(2000, tenants=5)
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.settled()
        code, result = await compared(w)
        assert (code, result["equal"], result["mismatches"]) == (0, True, 0), result
        for one in result["sums"]:
            assert one["mongo_hash"] == one["postgres_hash"]
            assert one["mongo_documents"] == one["postgres_documents"]
        assert result["documents"] == sum(one["mongo_documents"] for one in result["sums"])
        one_page = "(SELECT id FROM pages ORDER BY id LIMIT 1)"
        await w.value(f"UPDATE pages SET title = title || ' ' WHERE id = {one_page} RETURNING 1")
        code, result = await compared(w)
        assert (code, result["equal"], result["mismatches"]) == (1, False, 1), result
        (found,) = result["listed"]
        assert found["kind"] == "different"
        assert {"path": "title", "mongo": "string", "postgres": "string"} in found["fields"]


async def test_a_row_under_another_tenant_is_told_as_such_to_the_documents_tenant(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(400, tenants=2)
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.settled()
        page = await w.mongo["pages"].find_one({})
        other = await w.mongo["tenants"].find_one({"_id": {"$ne": page["tenantId"]}})
        connection = await w.connect()
        await connection.execute("SET session_replication_role = replica")  # no trigger touches updated_at
        moved = "UPDATE pages SET tenant_id = $1 WHERE id = $2"
        assert await connection.execute(moved, other["_id"], row_id(page["_id"])) == "UPDATE 1"
        await connection.close()
        whole = await compared(w)
        own = await compared(w, "--tenant", str(page["tenantId"]))
        stranger = await compared(w, "--tenant", str(other["_id"]))
        for code, result in (whole, own, stranger):
            assert (code, result["mismatches"]) == (1, 1), result
            (found,) = result["listed"]
            assert (found["kind"], found["id"]) == ("tenant", extended(page["_id"]))
            assert found["reason"] == "its row stands under another tenant"
            assert found["tenant"] == str(page["tenantId"])
            assert [field["path"] for field in found["fields"]] == ["tenantId"]
        # Each side counts where it stands.
        pages = f"{w.name}.pages"
        counts = {
            one["tenant"]: one["mongo_documents"] - one["postgres_documents"]
            for one in whole[1]["sums"]
            if one["collection"] == pages
        }
        assert counts == {str(page["tenantId"]): 1, str(other["_id"]): -1}
