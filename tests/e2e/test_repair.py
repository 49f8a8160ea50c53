"""What does not fit is mended through Kafka and apply, with nothing right touched, and within a limit."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import orjson
import pytest

from tests.support.busy import busy
from tests.support.world import World, once, world
from worker import failpoints
from worker.embedded import Services
from worker.mapping import row_id

_REAL = "SELECT count(*) FROM crossfade.mismatch WHERE state = 'real'"
_STANDING = "SELECT count(*) FROM crossfade.dead_letter WHERE state IN ('parked', 'dead')"
_OTHER = "(SELECT id FROM tenants o WHERE o.id <> t.tenant_id ORDER BY id LIMIT 1)"


def some(table: str, number: int, skip: int = 0, key: str = "id") -> str:
    return f"(SELECT DISTINCT {key} FROM {table} ORDER BY 1 LIMIT {number} OFFSET {skip})"


def activities(number: int, skip: int = 0) -> str:
    return some("lead_activities", number, skip, "lead_id")


# Kind, how many documents, and what spoils them; rows are added last.
PLANTED = [
    ("tenant", 40, f"UPDATE pages t SET tenant_id = {_OTHER} WHERE id IN {some('pages', 40)}"),
    ("different", 100, f"UPDATE pages SET title = title || ' ' WHERE id IN {some('pages', 100, 40)}"),
    ("missing", 80, f"DELETE FROM user_passwords WHERE id IN {some('user_passwords', 80)}"),
    (
        "tenant",
        40,
        f"UPDATE lead_activities t SET tenant_id = {_OTHER} "
        f"WHERE position = 0 AND lead_id IN {activities(40)}",
    ),
    (
        "different",
        60,
        "INSERT INTO lead_activities (lead_id, tenant_id, position, type) "
        "SELECT lead_id, min(tenant_id::text)::uuid, max(position) + 1, 'note' FROM lead_activities "
        f"WHERE lead_id IN {activities(60, 40)} GROUP BY lead_id",
    ),
    ("different", 60, f"DELETE FROM lead_activities WHERE position = 0 AND lead_id IN {activities(60, 100)}"),
    (
        "extra",
        80,
        "INSERT INTO pages (id, tenant_id, title, slug) "
        f"SELECT gen_random_uuid(), tenant_id, title, slug FROM pages WHERE id IN {some('pages', 80)}",
    ),
    (
        "orphan",
        20,
        "INSERT INTO lead_activities (lead_id, tenant_id, position, type) "
        f"SELECT gen_random_uuid(), tenant_id, 0, 'note' FROM leads WHERE id IN {some('leads', 20)}",
    ),
    ("extra", 20, "INSERT INTO pages SELECT * FROM back"),
]


@asynccontextmanager
async def settled(
    services: Services, directory: Path, documents: int = 600
) -> AsyncIterator[tuple[World, asyncpg.Connection]]:
    """A world whose sides are equal, and a connection that no trigger and no key hinders."""
    async with world(services, directory) as w:
        await w.load(documents, tenants=5)
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.settled()
        connection = await w.connect()
        await connection.execute("SET session_replication_role = replica")
        try:
            yield w, connection
        finally:
            await connection.close()


async def compared(w: World) -> dict[str, Any]:
    _, told = await once(w, "reconcile", "--once", "--json", "--within", "30")
    return orjson.loads(told[told.index("{") :])


async def repair(w: World, *options: str, **env: str) -> tuple[int, dict[str, Any]]:
    code, told = await once(w, "repair", "--json", *options, **env)
    assert "{" in told, told
    return code, orjson.loads(told[told.index("{") : told.rindex("}") + 1])


async def spoiled(connection: asyncpg.Connection, statement: str) -> int:
    status = await connection.execute(statement)
    return int(status.rpartition(" ")[2])


async def written(connection: asyncpg.Connection) -> dict[UUID, tuple[Any, ...]]:
    """Return each row's document, and the transaction that wrote the row."""
    rows = await connection.fetch(
        "SELECT p.id, d.version_time, d.version_order, p.xmin::text FROM crossfade.document d JOIN ("
        "SELECT id, xmin FROM pages UNION ALL SELECT id, xmin FROM leads UNION ALL "
        "SELECT id, xmin FROM user_passwords) p ON p.id = d.row_id"
    )
    return {row[0]: tuple(row)[1:] for row in rows}


@pytest.mark.timeout(400)
async def test_five_hundred_mismatches_are_mended_while_writes_go_on_and_nothing_else_is_touched(
    services: Services, tmp_path: Path
) -> None:
    async with settled(services, tmp_path, 4000) as (w, connection):
        # Documents that the ledger knows to be deleted, and whose rows come back.
        await connection.execute(
            f"CREATE TABLE back AS SELECT * FROM pages WHERE id IN {some('pages', 20, 200)}"
        )
        ids = [row[0] for row in await connection.fetch("SELECT id FROM back")]
        async for page in w.mongo["pages"].find({}, {"_id": 1}):
            if row_id(page["_id"]) in ids:
                await w.mongo["pages"].delete_one(page)
        await w.settled()
        planted: dict[str, int] = {}
        for kind, number, statement in PLANTED:
            assert await spoiled(connection, statement) == number, statement
            planted[kind] = planted.get(kind, 0) + number
        assert sum(planted.values()) == 500
        result = await compared(w)
        assert (result["mismatches"], result["settling"]) == (500, 0), result
        kinds = dict(await connection.fetch("SELECT kind, count(*) FROM crossfade.mismatch GROUP BY 1"))
        assert kinds == planted
        before = await written(connection)
        wrong = {row[0] for row in await connection.fetch("SELECT row_id FROM crossfade.mismatch")}
        async with w.writes(50):
            began, excused = time.monotonic(), busy()
            code, done = await repair(w)
            took, excused = time.monotonic() - began, excused or busy()
        assert (code, done["left"], done["lost"]) == (0, 0, 0), done
        assert done["documents"] + done["absences"] == 500
        assert took < (90 if excused else 30), (took, w._logs())
        await w.settled()
        await w.assert_nothing_lost()
        result = await compared(w)
        assert result["equal"], result
        assert await w.value(_STANDING) == 0
        after = await written(connection)
        same = [id_ for id_ in before if id_ not in wrong and after.get(id_, ())[:2] == before[id_][:2]]
        assert len(same) > 1000
        assert [id_ for id_ in same if after[id_] != before[id_]] == []
        audits = "SELECT action, subject FROM crossfade.audit WHERE action LIKE 'repair%'"
        told: dict[str, list[dict[str, Any]]] = {"repair": [], "repaired": []}
        for action, subject in await connection.fetch(audits):
            told[action].append(orjson.loads(subject))
        assert {one["row_id"] for one in told["repair"]} == set(map(str, wrong))
        assert len(told["repair"]) == len(told["repaired"]) == 500
        assert all(one["mongo"] == one["postgres"] for one in told["repaired"])
        unequal = [one for one in told["repair"] if one["kind"] not in ("tenant", "orphan")]
        assert len(unequal) == 500 - planted["tenant"] - planted["orphan"] and all(
            one["mongo"] != one["postgres"] for one in unequal
        )


async def test_an_event_whose_row_stands_under_another_tenant_is_a_dead_letter_until_it_is_repaired(
    services: Services, tmp_path: Path
) -> None:
    async with settled(services, tmp_path) as (w, connection):
        tenants = "SELECT tenant_id FROM pages GROUP BY 1 HAVING count(*) >= 5 ORDER BY 1"
        (one,), *_, (other,) = await connection.fetch(tenants)
        wrong = f"(SELECT id FROM pages WHERE tenant_id = '{one}' ORDER BY id LIMIT 5)"
        query = f"UPDATE pages SET tenant_id = '{other}' WHERE id IN {wrong} RETURNING id"
        ids = {row[0] for row in await connection.fetch(query)}
        pages = [one["_id"] async for one in w.mongo["pages"].find({}, {"_id": 1})]
        its = {"_id": {"$in": [id_ for id_ in pages if row_id(id_) in ids]}}
        # Alone in their batches: the other tenant's events would let apply see its rows.
        await w.mongo["pages"].update_many(its, {"$set": {"title": "changed"}})
        await w.settled()
        kinds = await connection.fetch(
            "SELECT kind, state::text, count(*) FROM crossfade.dead_letter GROUP BY 1, 2"
        )
        assert list(map(tuple, kinds)) == [("row_tenant", "dead", 5)]
        result = await compared(w)
        assert result["mismatches"] == 5
        code, done = await repair(w, "--collection", f"{w.name}.pages")
        assert (code, done["documents"], done["left"]) == (0, 5, 0)
        assert await w.value(_STANDING) == 0
        assert (await compared(w))["equal"]


async def test_more_than_the_limit_is_refused_and_a_person_may_raise_it(
    services: Services, tmp_path: Path
) -> None:
    async with settled(services, tmp_path) as (w, connection):
        assert await spoiled(connection, f"UPDATE pages SET title = 'x' WHERE id IN {some('pages', 9)}") == 9
        assert (await compared(w))["mismatches"] == 9
        limit = {"CROSSFADE_REPAIR_LIMIT": "8"}
        assert await repair(w, "--dry-run", **limit) == (0, {"mismatches": 9, "limit": 8})
        code, told = await once(w, "repair", **limit)
        assert code == 2 and "nothing was sent" in told and "--limit" in told
        assert await w.value("SELECT count(*) FROM crossfade.audit WHERE action = 'repair'") == 0
        (tenant, number) = await connection.fetchrow(
            "SELECT tenant_id, count(*) FROM crossfade.mismatch GROUP BY 1 ORDER BY 2 LIMIT 1"
        )
        code, done = await repair(w, "--tenant", str(tenant), **limit)
        assert (code, done["documents"]) == (0, number)
        code, done = await repair(w, "--limit", "9", **limit)
        assert (code, done["documents"], done["left"]) == (0, 9 - number, 0)
        assert await repair(w) == (0, {"mismatches": 0, "documents": 0, "absences": 0, "lost": 0, "left": 0})


async def test_one_document_is_repaired_by_its_id_though_nobody_had_found_it(
    services: Services, tmp_path: Path
) -> None:
    async with settled(services, tmp_path) as (w, connection):
        page = await connection.fetchval(
            f"UPDATE pages SET title = 'x' WHERE id IN {some('pages', 1)} RETURNING id"
        )
        other = await connection.fetchval(f"SELECT id FROM pages WHERE id IN {some('pages', 1, 5)}")
        of = ("--collection", f"{w.name}.pages", "--id")
        code, done = await repair(w, *of, str(other))
        assert (code, done["mismatches"], done["documents"]) == (0, 0, 0)
        code, done = await repair(w, *of, str(page))
        assert (code, done["documents"], done["left"]) == (0, 1, 0)
        assert (await compared(w))["equal"]
        for options, told in (
            (("--id", "x"), "--id needs --collection"),
            ((*of, "{"), "neither a row id"),
            (("--collection", "nowhere.pages"), "names no collection nowhere.pages"),
        ):
            code, output = await once(w, "repair", *options)
            assert code == 2 and told in output, output


async def test_who_dies_between_the_note_and_the_sending_repairs_again(
    services: Services, tmp_path: Path
) -> None:
    async with settled(services, tmp_path) as (w, connection):
        await spoiled(connection, f"UPDATE pages SET title = 'x' WHERE id IN {some('pages', 3)}")
        assert (await compared(w))["mismatches"] == 3
        code, _ = await once(w, "repair", CROSSFADE_FAILPOINTS=f"{failpoints.REPAIR_BEFORE_SEND}=exit:1")
        assert code not in (0, 1, 2)
        assert await w.value("SELECT count(*) FROM crossfade.audit WHERE action = 'repair'") == 3
        code, done = await repair(w)
        assert (code, done["documents"]) == (0, 3)
        assert await w.value("SELECT count(*) FROM crossfade.audit WHERE action = 'repaired'") == 3


@pytest.mark.timeout(300)
async def test_the_reconciler_repairs_by_itself_what_is_old_and_stops_where_too_much_is_wrong(
    services: Services, tmp_path: Path
) -> None:
    async with settled(services, tmp_path) as (w, connection):
        env = {
            "CROSSFADE_REPAIR_AFTER": "1",
            "CROSSFADE_RECONCILE_FULL_EVERY": "1",
            "CROSSFADE_REPAIR_LIMIT": "5",
        }
        await w.start("reconcile", "reconcile", **env)
        spoil = "UPDATE pages SET title = 'x' WHERE id IN {0} AND title <> 'x'"
        repaired = "SELECT count(*) FROM crossfade.audit WHERE action = 'repaired'"
        assert await spoiled(connection, spoil.format(some("pages", 4))) == 4
        await w.until_value(repaired, 4, 60)
        assert await w.value("SELECT count(*) FROM pages WHERE title = 'x'") == 0
        # Four within a day; with two more it would be too many.
        assert await spoiled(connection, spoil.format(some("pages", 2))) == 2
        log = tmp_path / "reconcile.log"
        await w.until("repair has stopped", lambda: "repair stopped" in log.read_text())
        await w.until_value(_REAL, 2)
        done = await w.value("SELECT max(generation) FROM crossfade.generation")
        await w.until_value("SELECT max(generation) FROM crossfade.generation", done + 4, 60)
        assert await w.value(repaired) == 4 and await w.value(_REAL) == 2
        # A person knows what made them.
        code, done = await repair(w)
        assert (code, done["documents"]) == (0, 2)
        await w.until("it goes on", lambda: "repair goes on" in log.read_text())
        assert await w.stop("reconcile") == 0


@pytest.mark.timeout(400)
async def test_more_than_one_page_is_repaired_beside_a_reconciler_that_sees_it_under_way(
    services: Services, tmp_path: Path
) -> None:
    async with settled(services, tmp_path, 6000) as (w, connection):
        await w.start("reconcile", "reconcile", CROSSFADE_RECONCILE_FULL_EVERY="1")
        spoil = f"UPDATE pages SET title = 'x' WHERE id IN {some('pages', 1500)}"
        number = await spoiled(connection, spoil)
        assert number > 1000  # a page
        await w.until_value(_REAL, number)
        code, done = await repair(w, "--limit", "2000")
        assert (code, done["documents"], done["left"]) == (0, number, 0), done
        assert await w.value("SELECT count(*) FROM pages WHERE title = 'x'") == 0
        assert await w.stop("reconcile") == 0
