"""The way back though its processes die, stand still, or meet each other; and what MongoDB refuses."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID

from bson import Binary

from tests.e2e.test_way_back import at_rest, write_a_bit_of_everything
from tests.support.way_back import application, assert_both_ways_equal, brought_back, stands_still
from tests.support.world import World, world
from worker import failpoints
from worker.embedded import Services
from worker.mapping.ids import row_id
from worker.postgres import outbox

_COLUMNS = """
SELECT string_agg(split_part(subject, '.', 2), ' ' ORDER BY subject) FROM crossfade.way_back_fault
WHERE subject LIKE 'leads.%'
"""
PLACES = sorted(name for name in failpoints.NAMES if name.startswith("reverse."))


async def test_killed_at_every_place_the_way_back_loses_nothing(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path) as w:
        tenant, other = await at_rest(w)
        # As the fence has it: MongoDB refuses whoever does not bypass it.
        fence = {"tenantId": {"$nin": [Binary.from_uuid(one) for one in (tenant, other)]}}
        await w.mongo.command({"collMod": "users", "validator": fence, "validationLevel": "strict"})
        await w.kill("reverse")
        async with application(w, tenant) as sql:
            leads = [row[0] for row in await sql.fetch("SELECT id FROM leads ORDER BY id")]
        for place in PLACES:
            await w.start("reverse", "dying", CROSSFADE_FAILPOINTS=f"{place}=exit:2")
            dying = w.processes["dying"]
            while dying.returncode is None:  # each of its sets is of a document that no other one has
                async with application(w, tenant) as sql:
                    await sql.execute("UPDATE leads SET source = $1 WHERE id = $2", place, leads.pop())
                waiting = "SELECT count(*) FROM crossfade.outbox"
                while dying.returncode is None and await w.value(waiting):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert await w.ended("dying") == failpoints.EXIT_CODE, place
        await write_a_bit_of_everything(w, other)
        await w.start("reverse", "reverse")
        await brought_back(w)
        await w.settled()
        await assert_both_ways_equal(w)
        assert await w.value("SELECT count(*) FROM crossfade.dead_letter") == 0


async def test_of_two_publishers_the_one_that_took_last_wins_however_late_the_other_sends(
    services: Services, tmp_path: Path
) -> None:
    """R2: the version is drawn before the rows are read. R3: what is held is not drained."""
    async with world(services, tmp_path) as w:
        tenant, _ = await at_rest(w)
        await w.kill("reverse")
        page = await w.mongo["pages"].find_one({"tenantId": tenant})
        assert page is not None
        id_ = row_id(page["_id"])
        async with application(w, tenant) as sql:
            await sql.execute("UPDATE pages SET title = 'first' WHERE id = $1", id_)
        await stands_still(w, "slow", "reverse.after_read", 40)
        connection = await w.connect()
        free = "SELECT count(*) FROM (SELECT FROM crossfade.outbox FOR UPDATE SKIP LOCKED) AS f"
        assert await connection.fetchval(free) == 0 and not await outbox.drained(connection, tenant)
        await connection.close()
        async with application(w, tenant) as sql:
            await sql.execute("UPDATE pages SET title = 'second' WHERE id = $1", id_)
        await w.start("reverse", "reverse")
        second = "SELECT (count(*) = 1)::integer FROM crossfade.outbox"  # the other's is sent
        await w.until_value(second, 1)
        await brought_back(w)
        found = await w.mongo["pages"].find_one({"_id": page["_id"]})
        assert found is not None and found["title"] == "second"


async def test_what_mongodb_refuses_breaks_the_way_back_until_it_fits(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        tenant, _ = await at_rest(w)
        one, two = await w.mongo["users"].find({"tenantId": tenant}).limit(2).to_list(2)
        await w.mongo["users"].create_index("name", unique=True, partialFilterExpression={"name": "zzz"})
        await w.execute("ALTER TABLE users ADD COLUMN extra text")
        async with application(w, tenant) as sql:
            await sql.execute("UPDATE users SET name = 'zzz' WHERE id = ANY($1)", [one["_id"], two["_id"]])
        await brought_back(w)  # whatever is behind it passes
        faults = "SELECT count(*) FROM crossfade.way_back_fault WHERE kind = $1 AND tenant_id = $2"
        assert await w.value(faults, "refused", tenant) == 1
        async with application(w, tenant) as sql:
            await sql.execute("UPDATE users SET name = 'zzy' WHERE id = $1", one["_id"])
        await w.until_value("SELECT (count(*) = 0)::integer FROM crossfade.way_back_fault", 1)
        await brought_back(w)
        await w.settled()
        await assert_both_ways_equal(w)
        await w.kill("reverse")
        await w.start("reverse", "reverse")  # knows the new column
        async with application(w, tenant) as sql:
            await sql.execute("UPDATE users SET extra = 'more' WHERE id = $1", one["_id"])
        await brought_back(w)
        assert await w.value(faults, "unmapped", tenant) == 1
        await _defaults_are_no_values(w, tenant)


async def test_what_no_index_of_mongodb_takes_breaks_that_tenant_s_way_back_alone(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        tenant, other = await at_rest(w)
        users = w.mongo["users"]
        indexes: dict[str, dict[str, Any]] = {
            "place": {"keys": [("name", "2dsphere")]},  # 16755, which says that a text is no place
            "list": {"keys": [("profile.list", "hashed")]},  # 16766
            "two": {"keys": [("profile.list", 1), ("profile.more", 1)]},  # 171
            "words": {"keys": [("name", "text")], "language_override": "role"},  # 17262
        }
        for name, index in indexes.items():
            await users.create_index(**index, name=name, partialFilterExpression={"name": name})
        ids = [one["_id"] async for one in users.find({"tenantId": tenant}).sort("_id")][: len(indexes) + 1]
        lists = '{"list": [1, 2], "more": [1, 2]}'
        async with application(w, tenant) as sql:
            for name, id_ in zip(indexes, ids, strict=False):
                await sql.execute(
                    "UPDATE users SET name = $1, role = 'Klingon', profile = $2 WHERE id = $3",
                    name,
                    lists,
                    id_,
                )
            await sql.execute("UPDATE users SET name = 'fits' WHERE id = $1", ids[-1])
        async with application(w, other) as sql:
            await sql.execute("UPDATE users SET name = 'other'")
        await brought_back(w)
        assert w.processes["reverse"].returncode is None
        faults = "SELECT count(*) FROM crossfade.way_back_fault WHERE kind = 'refused' AND tenant_id = $1"
        assert (await w.value(faults, tenant), await w.value(faults, other)) == (len(indexes), 0)
        assert await users.count_documents({"name": "fits"}) == 1
        for name in indexes:
            await users.drop_index(name)
        await w.until_value("SELECT (count(*) = 0)::integer FROM crossfade.way_back_fault", 1)
        await brought_back(w)
        await w.settled()
        await assert_both_ways_equal(w)


async def _defaults_are_no_values(w: World, tenant: UUID) -> None:
    """A column that is not mapped may have its default, whatever that is; another value is lost."""
    defaults = {
        "flag": "boolean DEFAULT false",
        "level": "bigint DEFAULT -1",
        "tags": "jsonb DEFAULT '[]'",
        "label": "varchar(20) DEFAULT 'a' || 'b'",
        "price": "numeric(10, 2) DEFAULT 0",
        "ratio": "real DEFAULT 1.50",
        "until": "date DEFAULT '2020-1-2'",
        "old_day": "date DEFAULT ('now'::text)::date",
        "hidden": "other.kept DEFAULT 'x'",  # a type that we may not name
        "seen_at": "timestamptz DEFAULT now()",
        "day": "date DEFAULT CURRENT_DATE",
        "number": "serial",
        "token": "uuid DEFAULT gen_random_uuid()",
    }
    added = ", ".join(f'ADD COLUMN "{name}" {rest}' for name, rest in defaults.items())
    await w.execute("CREATE SCHEMA other; CREATE DOMAIN other.kept AS text")
    await w.execute(f"ALTER TABLE leads {added}")
    await w.kill("reverse")
    await w.start("reverse", "reverse")
    for values, found in (
        ("name = 'x'", None),
        ("flag = NULL", None),
        ("level = 7", "level"),
        ("level = -1, tags = '[1]'", "level tags"),
        ("tags = '[]', label = 'ba', day = '2020-01-01', old_day = '2020-01-01'", "label level tags"),
        ("label = 'ab', price = 0.01", "label level price tags"),
        ("price = 0.00, ratio = 1.5, until = '2020-01-02'", "label level price tags"),
    ):
        async with application(w, tenant) as sql:
            await sql.execute(f"UPDATE leads SET {values}")
        await brought_back(w)
        assert await w.value(_COLUMNS) == found, values
