"""Batches rolled back: what they wrote goes and comes back as MongoDB has it, and nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.support.letters import command, running
from tests.support.named import collection, fill, named
from tests.support.things import things, until_equal
from tests.support.world import World, once, world
from worker import failpoints
from worker.embedded import Services
from worker.errors import UsageError
from worker.mapping import row_id
from worker.postgres.connect import connect
from worker.repair.rollback import Rollback

HELD = "SELECT count(*) FROM crossfade.document WHERE state = 'refetch'"
LARGEST = """
SELECT batch_id FROM crossfade.document WHERE state = 'live' GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 1
"""


async def batches(w: World, *arguments: object, code: int = 0) -> Any:
    """Run a command with --json; return what it prints, or its error."""
    ended, out, err = await command(w, "batches", *map(str, arguments), "--json")
    assert ended == code, out + err
    return json.loads(out) if not code or out else err


async def rows(w: World, query: str, *arguments: object) -> list[tuple[Any, ...]]:
    connection = await w.connect()
    try:
        return [tuple(row) for row in await connection.fetch(query, *arguments)]
    finally:
        await connection.close()


async def state_of(w: World) -> list[tuple[Any, ...]]:
    """Return the ledger as it is, and what was noted of rollbacks."""
    return [
        *await rows(w, "SELECT * FROM crossfade.document ORDER BY collection_id, row_id"),
        *await rows(w, "SELECT * FROM crossfade.batch_rollback"),
        *await rows(w, "SELECT * FROM crossfade.audit"),
    ]


async def batch_of(w: World, id_: Any) -> int:
    return await w.value("SELECT batch_id FROM crossfade.document WHERE row_id = $1", row_id(id_))


async def test_rows_go_and_come_back_and_what_newer_batches_wrote_stays(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(400)
        await running(w)
        batch_id = await w.value(
            "SELECT batch_id FROM crossfade.document d JOIN leads l ON l.id = d.row_id WHERE EXISTS "
            "(SELECT FROM lead_activities a WHERE a.lead_id = l.id) GROUP BY 1 ORDER BY count(*) DESC LIMIT 1"
        )
        last_wrote = "SELECT row_id FROM crossfade.document JOIN leads ON id = row_id WHERE batch_id = $1"
        leads = [row[0] for row in await rows(w, last_wrote, batch_id)]
        overwritten = [UUID(int=one.int) for one in leads[:3]]
        await w.mongo["leads"].update_many({"_id": {"$in": overwritten}}, {"$set": {"status": "won"}})
        await w.settled()
        untouched = "SELECT id, xmin FROM leads WHERE id = ANY($1::uuid[]) ORDER BY 1"
        before = await rows(w, untouched, overwritten)
        shown = await batches(w, "show", batch_id, "--limit", 10_000)
        assert shown["overwritten"] == 3
        assert len(shown["documents"]) == shown["last_wrote"]["live"] == shown["outcomes"]["applied"] - 3
        page = await batches(w, "show", batch_id, "--limit", 5, "--skip", 2)
        assert page["documents"] == shown["documents"][2:7]

        told = await batches(w, "rollback", batch_id, "--hold", "--yes")
        assert told["documents"] == len(shown["documents"]) and told["overwritten"] == 3
        assert told["rows"] > told["documents"]  # child rows too
        assert told["refetch"] is None
        gone = [UUID(one["row_id"]) for one in shown["documents"]]
        for table in ("tenants", "users", "user_passwords", "pages", "form_configs", "leads"):
            assert await w.value(f"SELECT count(*) FROM {table} WHERE id = ANY($1::uuid[])", gone) == 0
        left = "SELECT count(*) FROM lead_activities WHERE lead_id = ANY($1::uuid[])"
        assert await w.value(left, gone) == 0
        assert await rows(w, untouched, overwritten) == before
        code, out, _ = await command(w, "status", "--json")
        assert code == 0 and json.loads(out)["held"] == told["documents"]
        assert "crossfade batches refetch" in (await command(w, "status"))[1]
        assert not (await w.compare()).equal

        fetched = await batches(w, "refetch", batch_id)
        assert (fetched["sent"], fetched["held"]) == (told["documents"], 0)
        await w.settled()
        await w.assert_nothing_lost()
        listed = {one["batch_id"]: one for one in await batches(w, "list", "--limit", 10_000)}
        assert listed[batch_id]["rolled_back_at"] and not sum(listed[batch_id]["last_wrote"].values())
        assert list(listed) == sorted(listed, reverse=True)
        await w.send_again()
        await w.settled()
        await w.assert_nothing_lost()
        assert "rolled back before" in await batches(w, "rollback", batch_id, "--yes", code=2)


async def test_older_events_resurrect_nothing_and_what_is_gone_stays_gone(
    services: Services, tmp_path: Path
) -> None:
    async with things(services, tmp_path, "a") as w:
        await w.mongo["a"].insert_many([{"_id": n, "n": 0} for n in range(5)])
        await running(w)
        # One transaction at MongoDB is no promise of one batch: so apply is away meanwhile.
        await w.stop("apply")
        await w.mongo["a"].update_many({"_id": {"$lt": 4}}, {"$set": {"n": 1}})
        await w.mongo["a"].delete_one({"_id": 4})
        await w.published()
        await w.start("apply", "apply", CROSSFADE_APPLY_BATCH="1")
        await w.settled()
        for number in {await batch_of(w, n) for n in range(5)}:
            told = await batches(w, "rollback", number, "--hold", "--yes")
            assert told["refetch"] is None
        assert await w.value("SELECT count(*) FROM a") == 0
        assert await w.value(HELD) == 5
        await w.send_again(lambda topic: topic.endswith(".copy"))  # n = 0, and 4 as it was
        await w.settled()
        assert await w.value("SELECT count(*) FROM a") == 0
        assert await w.value(HELD) == 5

        await w.stop("publish")  # what MongoDB says now is told by the refetch alone
        await w.mongo["a"].delete_one({"_id": 0})
        await w.mongo["a"].insert_one({"_id": 4, "n": 4})
        fetched = await batches(w, "refetch")
        assert fetched == {"batch_id": None, "sent": 4, "absent": 1, "lost": 0, "held": 0}
        assert await w.value("SELECT array_agg(n ORDER BY n) FROM a") == [1, 1, 1, 4]
        await w.send_again()
        await w.start("publish", "publish")
        await until_equal(w, "a")
        assert await w.value("SELECT count(*) FROM crossfade.document WHERE state = 'deleted'") == 1
        assert (await batches(w, "refetch"))["sent"] == 0


async def test_the_event_that_is_as_new_is_taken_while_a_document_is_held(
    services: Services, tmp_path: Path
) -> None:
    """A refetch at the clusterTime of the copy must win; so does the batch's own record, read again (A1)."""
    async with things(services, tmp_path, "a") as w:
        await w.mongo["a"].insert_one({"_id": 1, "n": 1})
        await running(w)
        await batches(w, "rollback", await batch_of(w, 1), "--hold", "--yes")
        assert await w.value("SELECT count(*) FROM a") == 0
        await w.send_again(lambda topic: topic.endswith(".copy"))
        await until_equal(w, "a")
        assert await w.value(HELD) == 0


async def test_a_batch_of_a_tenant_that_has_left_mongodb_is_refused(
    services: Services, tmp_path: Path
) -> None:
    async with things(services, tmp_path, "a", tenant="path: t") as w:
        await w.mongo["a"].insert_many([{"_id": n, "t": f"tenant {n % 2}"} for n in range(10)])
        await running(w)
        batch_id, tenant = await w.value(LARGEST), row_id("tenant 1")
        await w.execute("UPDATE crossfade.tenant SET phase = 'draining' WHERE tenant_id = $1", tenant)
        before = await state_of(w)
        error = await batches(w, "rollback", batch_id, "--yes", code=2)
        assert f"{tenant} (draining)" in error and str(row_id("tenant 0")) not in error
        # And within the transaction, for a tenant that leaves after the question was answered.
        connection = await connect(w.env["CROSSFADE_POSTGRES_DSN"], "test")
        with pytest.raises(UsageError, match="draining"):
            await Rollback(w.mapping, replica=True).run(connection, batch_id, refetch=False)
        connection.terminate()
        assert await state_of(w) == before
        assert await w.value("SELECT count(*) FROM a") == 10


async def test_a_rollback_that_dies_has_done_nothing_and_a_refetch_can_be_repeated(
    services: Services, tmp_path: Path
) -> None:
    async with things(services, tmp_path, "a") as w:
        await w.mongo["a"].insert_many([{"_id": n, "n": n} for n in range(50)])
        await running(w)
        batch_id, before = await w.value(LARGEST), await state_of(w)
        dying = {"CROSSFADE_FAILPOINTS": f"{failpoints.ROLLBACK_BEFORE_COMMIT}=exit"}
        code, out = await once(w, "batches", "rollback", str(batch_id), "--yes", **dying)
        assert code == failpoints.EXIT_CODE, out
        assert await w.value("SELECT count(*) FROM a") == 50
        assert await state_of(w) == before

        for setting, place in (("MONGO_URI", "mongodb://127.0.0.1:1"), ("KAFKA_BOOTSTRAP", "127.0.0.1:1")):
            away = {f"CROSSFADE_{setting}": place}
            code, out = await once(w, "batches", "rollback", str(batch_id), "--yes", **away)
            assert code == 2 and "cannot be reached" in out, out
        assert "nobody is there" in await batches(w, "rollback", batch_id, code=2)
        assert await state_of(w) == before

        await w.stop("apply")
        # What is told of a wait that was too short, and that the rows are then not lost.
        code, out, err = await command(w, "batches", "rollback", str(batch_id), "--yes", "--wait", "0.5")
        assert code == 1 and "apply has not taken all" in err, out + err
        held = await w.value(HELD)
        assert held > 0 and await w.value("SELECT count(*) FROM a") == 50 - held
        code, _, err = await command(w, "batches", "refetch", str(batch_id), "--wait", "0.5")
        assert code == 1 and "apply has not taken all" in err
        await w.start("apply", "apply")
        assert (await batches(w, "refetch", batch_id))["held"] == 0
        await until_equal(w, "a")


async def test_unknown_and_empty_batches_are_told(services: Services, tmp_path: Path) -> None:
    async with things(services, tmp_path, "a") as w:
        await w.mongo["a"].insert_one({"_id": 1, "n": 1})
        await running(w)
        batch_id = await batch_of(w, 1)
        await w.mongo["a"].update_one({"_id": 1}, {"$set": {"n": 2}})
        await w.settled()
        assert "there is nothing to roll back" in await batches(w, "rollback", batch_id, "--yes", code=2)
        for which in ("show", "refetch"):
            assert "there is no batch 999999" in await batches(w, which, 999_999, code=2)
        assert "there is no batch 999999" in await batches(w, "rollback", 999_999, "--yes", code=2)


async def test_rollbacks_among_live_writes_lose_nothing(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path) as w:
        await w.load(300)
        await running(w)
        async with w.writes(150):
            for _ in range(6):
                batch_id = await w.value("SELECT batch_id FROM crossfade.document ORDER BY random() LIMIT 1")
                code, out, err = await command(w, "batches", "rollback", str(batch_id), "--yes")
                assert code == 0 or "there is nothing to roll back" in err, out + err
        await w.settled()
        assert await w.value(HELD) == 0
        await w.assert_nothing_lost()


async def test_foreign_keys_that_would_take_other_rows_along_refuse_it(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(100)
        await running(w)
        user = await w.value("SELECT author_id FROM pages WHERE author_id IS NOT NULL LIMIT 1")
        batch_id = await w.value("SELECT batch_id FROM crossfade.document WHERE row_id = $1", user)
        alone = "UPDATE crossfade.document SET batch_id = -1 WHERE batch_id = $1 AND row_id <> $2"
        await w.execute(alone, batch_id, user)
        w.env["CROSSFADE_REPLICATION_ROLE"] = "origin"
        before = await state_of(w)
        error = await batches(w, "rollback", batch_id, "--hold", "--yes", code=2)
        assert "nothing was changed" in error and "session_replication_role" in error
        assert await state_of(w) == before
        w.env["CROSSFADE_REPLICATION_ROLE"] = "auto"
        assert (await batches(w, "rollback", batch_id, "--yes"))["rows"] == 1
        await w.settled()
        await w.assert_nothing_lost()


@pytest.mark.parametrize("by", ["database", "collection"])
async def test_documents_of_tenants_that_names_tell_come_back(
    services: Services, tmp_path: Path, by: str
) -> None:
    async with named(services, tmp_path, by) as w:
        for tenant in ("acme", "zeta"):
            await fill(collection(w, by, tenant, "customers"), collection(w, by, tenant, "orders"), 30)
        await running(w)
        numbers = [row[0] for row in await rows(w, "SELECT DISTINCT batch_id FROM crossfade.document")]
        for number in numbers:
            assert (await batches(w, "rollback", number, "--yes"))["refetch"]["lost"] == 0
        await w.settled()
        assert await w.unequal() == []
        assert await w.value("SELECT count(*) FROM orders") == 60
