"""Hooks, groups and open transactions: what holds a move up aborts it, and the tenants can write again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import yaml

from tests.support.moving import LEAD, application, cutover, moving, phase, tenants_of, until_phase
from tests.support.way_back import brought_back
from tests.support.world import World, once
from worker.embedded import Services
from worker.mongo.fence_documents import COLLECTION, DATABASE, State
from worker.mongo.fence_lock import LOCKS

SPOIL = "SET session_replication_role = replica; UPDATE leads SET name = '{}' WHERE id = '{}'"
_HOOKED = ("draining", "draining", "fence", "mongo")  # before and after; before; after
LONGER_THAN_A_FENCE = 0.9  # seconds; a fence has 0.7


async def test_what_holds_a_move_up_aborts_it(services: Services, tmp_path: Path) -> None:
    careless = {"CROSSFADE_MONGO_URI": f"{services.mongo_uri}&readPreference=secondaryPreferred"}
    async with moving(services, tmp_path, tenants=4, documents=200, **careless) as w:
        one, two, three, home = await tenants_of(w)
        await _another_mapping(w, one)

        code, (result,) = await cutover(w, str(one), "--before", "echo no >&2; exit 3", "--window", "0")
        assert code == 1 and "hook before draining failed with exit code 3: mend" in result["reason"]
        code, (result,) = await cutover(w, str(one), "--before", "sleep 60", "--hook-within", "0.5")
        assert code == 1 and "did not end within 0.5 s" in result["reason"]
        told = tmp_path / "told"
        hook = f'echo "$CROSSFADE_TRANSITION $CROSSFADE_TENANTS" >> {told}; '
        hook += 'test "$CROSSFADE_TRANSITION" != fence || { printf "no\\000\\033[1m, not now" >&2; exit 4; }'
        code, (result,) = await cutover(w, str(one), "--before", hook, "--after", hook)
        assert code == 1 and result["reason"].endswith("hook before fence failed with exit code 4"), result
        assert told.read_text().splitlines() == [f"{name} {one}" for name in _HOOKED]
        assert await phase(w, one) == "mongo"

        # A transaction of a neighbour that stays open: the collMod gives up, and nobody waits for it longer.
        async with await w.client.start_session() as session:
            session.start_transaction()
            await w.mongo["leads"].insert_one(
                {"_id": uuid4(), "tenantId": home, "email": "x"}, session=session
            )
            force = ("--force", "open-transactions-mongodb")
            code, (result,) = await cutover(w, str(one), *force)
            assert code == 1 and "many writes, hold it; open meanwhile: session " in result["reason"], result
            assert result["pause_ms"] < 3000
            assert await phase(w, one) == "mongo"
            for tenant in (one, home):
                users = w.mongo["users"]
                await users.insert_one({"_id": uuid4(), "tenantId": tenant, "email": f"{uuid4()}@b.example"})
            await _take_turns(w, one, two, *force)
            await session.abort_transaction()

        await _another_moves(w, one)

        # As one: all of them, or none.
        code, (result,) = await cutover(w, str(two), str(three), "--group", "--rehearse", "--window", "60")
        assert code == 0 and len(result["tenants"]) == 2, result
        assert {await phase(w, two), await phase(w, three)} == {"mongo"}
        code, (result,) = await cutover(w, str(two), str(three), "--group", "--window", "60")
        assert code == 0, result
        assert {await phase(w, two), await phase(w, three)} == {"postgres"}
        code, (result,) = await cutover(w, str(one), str(two), "--group")
        assert code == 1 and "is in postgres" in result["reason"]
        assert await phase(w, one) == "mongo"
        await _differs_in_the_pause(w, two, three)
        code, told_back = await once(w, "rollback", str(two), str(three), "--group", "--window", "60")
        assert code == 0, told_back
        await _differs(w, one)
        await w.settled()
        assert await w.unequal() == []


async def _another_mapping(w: World, tenant: UUID) -> None:
    """What a controller's file lacks, or has otherwise, it would neither fence nor compare."""
    text, other = w.mapping_file.read_text(), w.mapping_file.with_name("other.yaml")
    mapping = yaml.safe_load(text)
    del mapping["collections"]["leads"]
    other.write_text(yaml.safe_dump(mapping, sort_keys=False))
    for command in (("cutover", str(tenant), "--rehearse"), ("cutover", "check", str(tenant))):
        code, told = await once(w, *command, CROSSFADE_MAPPING=str(other))
        assert code in (1, 2) and f"not that of the rows, in {w.name}.leads" in told, (code, told)
    assert await phase(w, tenant) == "mongo"


async def _take_turns(w: World, one: UUID, two: UUID, *force: str) -> None:
    """Moves of a command whose fences find no gap: nobody's begins before the other's is taken back, and what
    the first has learned of the collection the second knows.
    """
    state = {"$ifNull": ["$updateDescription.updatedFields.state", "$fullDocument.state"]}
    fences, changes = w.client[DATABASE][COLLECTION], list[tuple[UUID, str]]()
    async with fences.watch([{"$set": {"state": state}}], max_await_time_ms=500) as stream:
        assert await stream.try_next() is None
        moves = asyncio.create_task(cutover(w, str(one), str(two), "--at-once", "2", *force))
        waits = await _waits_for_leads(w, moves)
        code, results = await moves
        assert code == 1 and all("many writes, hold it" in result["reason"] for result in results), results
        while change := await stream.try_next():
            changes.append((change["documentKey"]["_id"]["tenant"], change["state"]))
    first, second = (one, two) if changes[0][0] == one else (two, one)
    states = (State.DRAINING, State.ABORTING, State.HOME)
    assert changes == [(tenant, state) for tenant in (first, second) for state in states], changes
    fence, another = waits.values()
    assert max(fence) < min(another), waits


async def _waits_for_leads(w: World, moves: asyncio.Task[Any]) -> dict[str, set[int]]:
    """Return, until the moves end, for each fence how long its collMods of `leads` would wait, in ms."""
    waits = dict[str, set[int]]()
    pipeline = [{"$currentOp": {}}, {"$match": {"command.collMod": "leads", "command.$db": w.name}}]
    while not moves.done():
        async for one in w.client.admin.aggregate(pipeline):
            waits.setdefault(one["command"]["comment"], set()).add(one["command"]["maxTimeMS"])
        await asyncio.sleep(0.01)
    return waits


async def _another_moves(w: World, tenant: UUID) -> None:
    """Its collMods are waited for before the pause begins: in it there would be no time for them."""
    locks = w.client[DATABASE][LOCKS]
    held = [{"$set": {"until": {"$add": ["$$NOW", 60_000]}}}]
    assert (await locks.update_one({"_id": w.name}, held)).modified_count
    rehearsal = asyncio.create_task(once(w, "cutover", str(tenant), "--rehearse", "--window", "60"))
    await until_phase(w, tenant, "draining")
    await asyncio.sleep(LONGER_THAN_A_FENCE)  # for so long the other one goes on
    await locks.update_one({"_id": w.name}, [{"$set": {"until": "$$NOW"}}])
    code, told = await rehearsal
    assert code == 0 and "fence was held up" not in told, told


async def _differs(w: World, tenant: UUID) -> None:
    """A row that was spoiled since the last generation is found by the move itself."""
    await w.until_value("SELECT count(*) FROM crossfade.generation WHERE kind = 'full' AND unclean = '{}'", 1)
    assert await w.stop("reconcile") == 0
    lead = await w.mongo["leads"].find_one({"tenantId": tenant})
    await w.mongo["leads"].update_one({"_id": lead["_id"]}, {"$set": {"name": "as it should be"}})
    await w.settled()
    await w.execute(SPOIL.format("spoiled", lead["_id"]))
    code, (result,) = await cutover(w, str(tenant))
    assert code == 1 and "1 documents do not fit" in result["reason"], result
    assert str(lead["_id"]) in result["reason"]
    assert await phase(w, tenant) == "mongo"
    await w.execute(SPOIL.format("as it should be", lead["_id"]))


async def _differs_in_the_pause(w: World, *tenants: UUID) -> None:
    """What the way back has written and does not fit sends a rollback back to PostgreSQL, at once.

    So it is though the look ends before the wait for what MongoDB had, which asks on the same connection.
    """
    lead = uuid4()
    async with application(w, tenants[0]) as sql:
        await sql.execute(LEAD, lead, tenants[0])
    await brought_back(w)
    await w.execute(SPOIL.format("spoiled", lead))
    arguments = "rollback", *map(str, tenants), "--group", "--window", "0"
    move = asyncio.create_task(once(w, *arguments, CROSSFADE_FAILPOINTS="rollback.closed=hold:1:1"))
    await until_phase(w, tenants[0], "rolling_back")
    await w.kill("apply")  # so that the wait is still on when the look has ended
    code, told = await move
    assert code == 1 and "documents do not fit" in told, told
    assert "PostgreSQL does not follow yet" not in told, told
    assert {await phase(w, tenant) for tenant in tenants} == {"postgres"}
    async with application(w, tenants[0]) as sql:
        await sql.execute(LEAD, uuid4(), tenants[0])
    await w.start("apply", "apply")
    await w.execute(SPOIL.format("as it should be", lead))
    async with application(w, tenants[0]) as sql:  # so that both sides have the same again
        await sql.execute("UPDATE leads SET name = 'as it should be, now' WHERE id = $1", lead)
    await brought_back(w)
    await w.settled()
