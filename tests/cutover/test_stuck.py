"""What does not end: transactions, open or prepared, on either side, and hooks. A move aborts and tells."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psutil
import pytest
import pytest_asyncio

from tests.support.edges import LEAD, WITHIN, bring, held, in_postgres, nowhere_else, writable, written
from tests.support.moving import application, cutover, epoch_of, looked_after, phase, tenants_of, until_phase
from tests.support.world import World, once
from worker.embedded import Services

CLOSE_WITHIN = 0.4  # seconds that closing PostgreSQL waits for a tenant's writers
pytestmark = pytest.mark.asyncio(loop_scope="module")
FORCE = ("--force", "open-transactions-postgresql")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def w(services: Services, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with looked_after(services, tmp_path_factory.mktemp("stuck"), documents=200) as made:
        yield made


async def prepare(w: World, tenant: UUID, gid: str, statement: str, *arguments: object) -> None:
    """Do a statement as the application, and prepare its transaction."""
    async with application(w, tenant) as app:
        await app.execute("BEGIN")
        await app.execute(statement, *arguments)
        await app.execute(f"PREPARE TRANSACTION '{gid}'")


async def end(w: World, how: str, gid: str) -> None:
    if await w.value("SELECT EXISTS (SELECT FROM pg_prepared_xacts WHERE gid = $1)", gid):
        await w.execute(f"{how} PREPARED '{gid}'")


async def test_a_prepared_transaction_holds_a_rollback_up(w: World) -> None:
    tenant, other = (await tenants_of(w))[:2]
    await bring(w, tenant, "postgres")
    gid, lead = f"{w.name} wrote", uuid4()
    try:
        async with written(w, tenant, other) as writer:
            await prepare(w, tenant, gid, LEAD, lead, tenant)
            code, told = await once(w, "rollback", str(tenant))
            since = time.monotonic()
            assert code == 1 and f"prepared transaction {gid} (application_role" in told, told
            assert await phase(w, tenant) == "postgres"
            await writable(w, tenant, "postgres", "a prepared transaction", since=since)
            longest = max(one.answered - one.sent for one in writer.written.accepted)
            print(f"the longest write took {longest:.2f} s")
            assert longest < CLOSE_WITHIN + WITHIN
            # Its rows count as soon as it is committed, and go home with the tenant.
            await end(w, "COMMIT", gid)
            code, told = await once(w, "rollback", str(tenant), "--window", "60")
            assert code == 0, told
            assert await w.mongo["leads"].find_one({"_id": lead, "tenantId": tenant})
            await nowhere_else(w, tenant, "mongo")
    finally:
        await end(w, "ROLLBACK", gid)


async def test_a_transaction_was_prepared_before_the_cutover(w: World) -> None:
    """It cannot have written, but it may hold rows that apply is to change."""
    tenant, other = (await tenants_of(w))[:2]
    await bring(w, tenant, "mongo")
    gid = f"{w.name} reads"
    lead = await w.mongo["leads"].find_one({"tenantId": tenant})
    try:
        async with written(w, tenant, other, rate=20):
            await prepare(w, tenant, gid, "SELECT FROM leads WHERE id = $1 FOR UPDATE", lead["_id"])
            code, (result,) = await cutover(w, str(tenant))
            assert code == 1 and f"prepared {gid}" in result["reason"], result
            async with held(w, tenant, "cutover.draining", 0.5, *FORCE) as move:
                change = {"$set": {"name": "meanwhile"}}
                await w.mongo["leads"].update_one({"_id": lead["_id"]}, change)
                code, result = await move.ended()
                since = time.monotonic()
                print(result)
                assert code == 1 and result["phase"] == "mongo", result
                await writable(w, tenant, "mongo", "prepared before the cutover", since=since)
            assert not await in_postgres(w, tenant)
            since = time.monotonic()
            await end(w, "ROLLBACK", gid)
            await writable(w, tenant, "mongo", "rolled back", since=since)
            await nowhere_else(w, tenant, "mongo")
            code, results = await cutover(w, str(tenant), "--window", "90")
            assert code == 0, results
    finally:
        await end(w, "ROLLBACK", gid)


async def test_an_open_transaction_is_named(w: World) -> None:
    tenant, other = (await tenants_of(w))[:2]
    async with application(w, tenant) as app:
        await app.execute("BEGIN")
        pid = app.get_server_pid()
        await w.until_value(
            "SELECT count(*) FROM pg_stat_activity "
            f"WHERE pid = {pid} AND clock_timestamp() - xact_start > interval '1 s'",
            1,
        )
        code, told = await once(w, "cutover", "check", str(tenant))
        assert code == 1, told
        (line,) = (one for one in told.splitlines() if " open-transactions-postgresql " in one)
        assert line.startswith("FAILED") and f"{pid} (application_role" in line, line
        await app.execute("ROLLBACK")
    await bring(w, tenant, "postgres")
    async with application(w, tenant) as app:
        await app.execute("BEGIN")
        await app.execute(LEAD, uuid4(), tenant)
        code, told = await once(w, "rollback", str(tenant))
        pid = app.get_server_pid()
        assert code == 1 and f"pid {pid} (application_role, idle in transaction, open for " in told, told
        await app.execute("ROLLBACK")
    # Without the right to see others' transactions it says so, and does not take them for none.
    await w.execute("REVOKE pg_read_all_stats FROM crossfade_control")
    try:
        code, told = await once(w, "cutover", "check", str(other))
    finally:
        await w.execute("GRANT pg_read_all_stats TO crossfade_control")
    assert "open transactions of other roles cannot be seen" in told, told


@pytest.mark.parametrize("when", ["before", "after the decision"])
async def test_a_transaction_stands_open_in_mongodb_in_a_rollback(w: World, when: str) -> None:
    """Once it is decided, opening would wait for it: so it is looked for before anything changes."""
    tenant, other = (await tenants_of(w))[:2]
    await bring(w, tenant, "postgres")
    async with written(w, tenant, other), await w.client.start_session() as session:
        if when == "before":
            epoch = await epoch_of(w, tenant)
            await _open(w, other, session)
            await asyncio.sleep(1.1)  # from then on it counts as long
            code, told = await once(w, "rollback", str(tenant))
            assert code == 1 and "MongoDB could not let it in: session " in told, told
            assert await epoch_of(w, tenant) == epoch, "it was closed for a while"
            await session.abort_transaction()
            code, told = await once(w, "rollback", str(tenant), "--window", "60")
            assert code == 0, told
        else:
            async with held(w, tenant, "rollback.decided", 1) as move:
                await _open(w, other, session)
                await until_phase(w, tenant, "opening")
                await asyncio.sleep(3)  # the fault's length
                since = time.monotonic()
                await session.abort_transaction()
                await writable(w, tenant, "mongo", "an open transaction in MongoDB ends", since=since)
                code, result = await move.ended()
                assert code == 0 and result["phase"] == "mongo", result
        await nowhere_else(w, tenant, "mongo")


async def test_a_hook_hangs(w: World, tmp_path: Path) -> None:
    """Nothing is refused meanwhile; past its time it is killed with its children."""
    tenant, other = (await tenants_of(w))[:2]
    told, sleeping = tmp_path / "told", f"61.{uuid4().int % 10**9}"
    hangs = f'echo "$CROSSFADE_TRANSITION $(date +%s.%N)" >> {told}; sleep {sleeping}'
    hook = ("--hook-within", "0.5", "--before")
    for home, command, transition in (
        ("mongo", "cutover", "draining"),
        ("mongo", "cutover", "fence"),
        ("postgres", "rollback", "rolling_back"),
    ):
        await bring(w, tenant, home)
        told.write_text("")
        async with written(w, tenant, other) as writer:
            only = f'test "$CROSSFADE_TRANSITION" != {transition} && exit 0; {hangs}'
            while not told.read_text():  # a check may not hold yet
                code, said = await once(w, command, str(tenant), *hook, only)
                assert code == 1, said
            seconds = time.time() - float(told.read_text().split()[1]) - 0.5
            print(f"{command} ended {seconds:.2f} s after the limit of the hook before {transition}")
            assert f"the hook before {transition} did not end within 0.5 s" in said, said
            assert seconds < WITHIN, seconds
            await nowhere_else(w, tenant, home)
            await writable(w, tenant, home, f"the hook before {transition}", since=time.monotonic())
            longest = max(one.answered - one.sent for one in writer.written.accepted)
            print(f"the longest write took {longest:.2f} s")
            assert longest < 0.5 + WITHIN
    running = [process.info["cmdline"] for process in psutil.process_iter(["cmdline"])]
    assert not any(sleeping in one for line in running if line for one in line)


async def _open(w: World, tenant: UUID, session: Any) -> None:
    session.start_transaction()
    lead = {"_id": uuid4(), "tenantId": tenant, "email": "a@b.example"}
    await w.mongo["leads"].insert_one(lead, session=session)
