"""What counts, and for whom: documents held, tenants that were switched, rows of another tenant."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.support.letters import command, running
from tests.support.things import things
from tests.support.world import World, once
from worker.embedded import Services
from worker.mapping import row_id
from worker.postgres import proof
from worker.postgres.connect import connect

DOCUMENTS = 20
ONE, TWO = row_id("tenant 0"), row_id("tenant 1")
REAL = "SELECT count(*) FROM crossfade.mismatch WHERE state = 'real'"
NO_MISMATCH = "SELECT (count(*) = 0)::integer FROM crossfade.mismatch"
HELD = "SELECT count(*) FROM crossfade.document WHERE state = 'refetch'"


@asynccontextmanager
async def two_tenants(services: Services, directory: Path) -> AsyncIterator[World]:
    async with things(services, directory, "a", tenant="path: t") as w:
        await w.mongo["a"].insert_many([{"_id": n, "t": f"tenant {n % 2}", "n": n} for n in range(DOCUMENTS)])
        await running(w)
        yield w


async def reconciled(w: World, *options: str) -> tuple[int, dict[str, Any]]:
    code, told = await once(w, "reconcile", "--once", "--json", "--within", "20", *options)
    return code, json.loads(told[told.index("{") :])


async def clean(w: World, tenant: UUID | None = None) -> int:
    """Return the number of the last clean generation; 0: there is none."""
    connection = await connect(w.env["CROSSFADE_POSTGRES_DSN"], "test")
    try:
        found = await proof.clean(connection, w.env["CROSSFADE_PUBLISHER"], tenant)
        return found.generation if found else 0
    finally:
        connection.terminate()


async def told(w: World, *arguments: str) -> tuple[int, Any]:
    code, out, err = await command(w, *arguments, "--json")
    assert out, err
    return code, json.loads(out)


@pytest.mark.timeout(240)
async def test_documents_held_are_mismatches_at_once_and_no_generation_is_clean(
    services: Services, tmp_path: Path
) -> None:
    async with two_tenants(services, tmp_path) as w:
        assert "proof    never was everything compared" in (await command(w, "status"))[1]
        await w.start("reconcile", "reconcile")
        ended = "SELECT count(*) FROM crossfade.generation WHERE kind = 'full' AND finished_at IS NOT NULL"
        await w.until_value(ended, 1)
        before = await clean(w)
        assert before > 0
        batch_id = await w.value("SELECT batch_id FROM crossfade.document WHERE row_id = $1", row_id(3))
        code, out, err = await command(w, "batches", "rollback", str(batch_id), "--hold", "--yes")
        assert code == 0, out + err
        held = await w.value(HELD)
        assert held > 0
        # Nothing was changed in MongoDB, and the next full generation is an hour away.
        await w.until_value(REAL, held)
        assert await w.value(ended) == 1
        of_changes = "SELECT count(*) FROM crossfade.generation WHERE kind = 'changes' AND held > 0"
        await w.until_value(of_changes, 1)
        assert await clean(w) == before
        _, status = await told(w, "status")
        proven = status["reconcile"]
        assert (status["held"], proven["clean"]["generation"], proven["under_way"]) == (held, before, None)
        assert proven["last_full"]["documents"] == DOCUMENTS and proven["last_full"]["stale"] is None
        (missing,) = proven["mismatches"]
        assert (missing["state"], missing["kind"], missing["count"]) == ("real", "missing", held)
        assert await w.stop("reconcile") == 0

        code, result = await reconciled(w)
        assert (code, result["equal"], result["held"], result["mismatches"]) == (1, False, held, held)
        assert {one["kind"] for one in result["listed"]} == {"missing"}
        assert await clean(w) == before
        code, out, err = await command(w, "batches", "refetch")
        assert code == 0, out + err
        await w.settled()
        code, result = await reconciled(w)
        assert (code, result["equal"], result["held"]) == (0, True, 0)
        assert await clean(w) == result["generation"]
        code, tenants = await told(w, "generations", "--by-tenant")
        assert code == 0 and {one["tenant"] for one in tenants} == {str(ONE), str(TWO)}
        assert {one["clean_generation"] for one in tenants} == {result["generation"]}
        code, fulls = await told(w, "generations", "--kind", "full")
        assert [one["mismatches"] for one in fulls] == [0, held, 0]

        # Copied again: rows are written that were compared before.
        code, out, err = await command(w, "copy", "start", "--collection", f"{w.name}.a", "--yes")
        assert code == 0, out + err
        await w.until_value("SELECT copies FROM crossfade.collection", 2)
        await w.settled()
        assert await clean(w) == 0
        assert "proof    none any more: collections were copied again" in (await command(w, "status"))[1]


async def test_documents_held_that_mongodb_no_longer_has_are_not_clean_either(
    services: Services, tmp_path: Path
) -> None:
    """Both sides are equal, and yet apply waits for them."""
    async with two_tenants(services, tmp_path) as w:
        await w.execute("UPDATE crossfade.document SET state = 'refetch' WHERE row_id = $1", row_id(3))
        code, result = await reconciled(w)
        assert (code, result["equal"], result["mismatches"], result["held"]) == (1, False, 0, 1)
        assert (await clean(w), await clean(w, TWO)) == (0, 0)
        code, tenants = await told(w, "generations", "--by-tenant", "--limit", "1")
        assert (code, tenants[0]["tenant"], tenants[0]["clean_generation"]) == (1, str(TWO), None)
        assert await clean(w, ONE) == result["generation"]


async def test_mismatches_of_a_tenant_that_was_switched_are_forgotten_and_none_come(
    services: Services, tmp_path: Path
) -> None:
    async with two_tenants(services, tmp_path) as w:
        await w.execute("UPDATE a SET n = 99 WHERE id = ANY($1::uuid[])", [row_id(0), row_id(1)])
        await w.start("reconcile", "reconcile", CROSSFADE_RECONCILE_FULL_EVERY="1")
        await w.until_value(REAL, 2)
        await w.execute("UPDATE crossfade.tenant SET phase = 'postgres' WHERE tenant_id = $1", TWO)
        only = "SELECT (array_agg(tenant_id) = ARRAY[$1::uuid])::integer FROM crossfade.mismatch"
        await w.until_value(only.replace("$1", f"'{ONE}'"), 1)
        # A change that reached MongoDB all the same is no news of the rows, which are the application's now.
        await w.mongo["a"].update_many({"_id": {"$in": [3, 5]}}, {"$set": {"n": 1000}})
        await w.published()
        await _looked_at_all(w)
        fulls = "SELECT count(*) FROM crossfade.generation WHERE kind = 'full' AND finished_at IS NOT NULL"
        await w.until_value(fulls, await w.value(fulls) + 2)
        assert await w.value("SELECT array_agg(DISTINCT tenant_id) FROM crossfade.mismatch") == [ONE]
        assert await w.stop("reconcile") == 0
        code, result = await reconciled(w, "--tenant", str(TWO))
        assert (code, result["mismatches"], result["sums"]) == (0, 0, [])


async def _looked_at_all(w: World) -> None:
    """Wait until the reconciler has looked at all changes that Kafka has now."""
    for (topic, number), end in (await w.ends()).items():
        if not topic.endswith(".copy"):
            reached = f"(place #>> '{{offsets,{topic},{number}}}')::bigint >= {end}"
            newest = (
                "SELECT {0}::integer FROM crossfade.generation WHERE kind = 'changes' AND place <> '{{}}'"
            )
            await w.until_value(newest.format(reached) + " ORDER BY generation DESC LIMIT 1", 1)


async def test_a_row_of_another_tenant_is_found_for_either(services: Services, tmp_path: Path) -> None:
    async with two_tenants(services, tmp_path) as w:
        await w.execute("UPDATE a SET tenant_id = $1 WHERE id = $2", TWO, row_id(0))
        half = DOCUMENTS // 2
        for tenant, documents, rows in ((ONE, half, half - 1), (TWO, half, half + 1)):
            await w.execute("DELETE FROM crossfade.mismatch")
            code, result = await reconciled(w, "--tenant", str(tenant))
            assert (code, result["mismatches"]) == (1, 1), tenant
            (found,) = result["listed"]
            assert (found["tenant"], found["row_tenant"]) == (str(ONE), str(TWO))
            (sums,) = result["sums"]
            assert (sums["mongo_documents"], sums["postgres_documents"]) == (documents, rows)
            assert await clean(w, tenant) == 0
