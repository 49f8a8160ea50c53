"""Who may write rows, and which copy counts, when mappings change at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import asyncpg
import pytest

from tests.support.schema_database import Database
from worker.errors import MappingError
from worker.postgres.checkpoints import Checkpoints
from worker.postgres.mapping_versions import SHARE_CHANGES, accept, agree, known

pytest_plugins = ["tests.support.schema_fixtures"]
SYNC = "crossfade_sync"
INCARNATION = UUID(int=7)
OLD, NEW = {"s.pages": "old", "s.users": "same"}, {"s.pages": "new", "s.users": "same"}


@asynccontextmanager
async def publisher(database: Database) -> AsyncIterator[Checkpoints]:
    checkpoints = Checkpoints(database.services.dsn(SYNC, database.name), "p")
    await checkpoints.open()
    try:
        yield checkpoints
    finally:
        await checkpoints.close()


async def test_only_the_mapping_of_the_rows_is_agreed_on(spaces_database: Database) -> None:
    async with spaces_database.connect(SYNC) as one:
        first = await agree(one, OLD)
        assert await agree(one, OLD) == first
        with pytest.raises(MappingError, match=r"s\.pages were made by another mapping"):
            await agree(one, NEW)
        await accept(one, NEW, ["s.pages"])
        after = await agree(one, NEW)
        assert (after.changes, after.numbers) == (first.changes + 1, first.numbers)
        with pytest.raises(MappingError):
            await agree(one, OLD)


async def test_no_collection_is_new_while_tenants_are_away(spaces_database: Database) -> None:
    """A copy does not reach their rows: what MongoDB has of it would be nowhere."""
    async with spaces_database.connect(SYNC) as one:
        await agree(one, OLD)
        async with spaces_database.connect() as admin:
            await admin.execute(
                "INSERT INTO crossfade.tenant (tenant_id, phase) VALUES ($1, 'postgres')", UUID(int=1)
            )
            with pytest.raises(MappingError, match=r"s\.late is new in the mapping, and 1 tenants"):
                await agree(one, OLD | {"s.late": "x"})
            assert "s.late" not in await known(one)
            await admin.execute("UPDATE crossfade.tenant SET phase = 'mongo'")
        await agree(one, OLD | {"s.late": "x"})


async def test_a_copy_by_the_same_mapping_ends_no_batch(spaces_database: Database) -> None:
    async with spaces_database.connect(SYNC) as one:
        before = await agree(one, OLD)
        await accept(one, OLD, list(OLD))
        assert await agree(one, OLD) == before


async def test_starting_often_uses_up_no_numbers(spaces_database: Database) -> None:
    async with spaces_database.connect(SYNC) as one:
        for _ in range(5):
            await agree(one, OLD)
        await agree(one, OLD | {"s.late": "x"})
        assert (await known(one))["s.late"].number == len(OLD) + 1


async def test_accepting_waits_for_batches_and_a_later_batch_sees_it(spaces_database: Database) -> None:
    async with (
        spaces_database.connect(SYNC) as batch,
        spaces_database.connect(SYNC) as later,
        spaces_database.connect(SYNC) as person,
    ):
        agreed = await agree(batch, OLD)
        transaction = batch.transaction()
        await transaction.start()
        assert await batch.fetchval(f"SELECT {SHARE_CHANGES}") == agreed.changes
        accepting = asyncio.create_task(accept(person, NEW, ["s.pages"]))
        await _waits_for_a_lock(spaces_database, 1)
        # A batch that begins now waits behind it, and reads what it made.
        beginning = asyncio.create_task(later.fetchval(f"SELECT {SHARE_CHANGES}"))
        await asyncio.wait({accepting}, timeout=0.2)
        assert not accepting.done()
        await transaction.commit()
        await accepting
        assert await beginning in (agreed.changes, agreed.changes + 1)
        assert await later.fetchval(f"SELECT {SHARE_CHANGES}") == agreed.changes + 1


async def _waits_for_a_lock(database: Database, count: int) -> None:
    async with database.connect() as admin, asyncio.timeout(10):
        query = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        while await admin.fetchval(query) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_batch_that_waited_for_the_change_reads_the_new_number(spaces_database: Database) -> None:
    async with spaces_database.connect(SYNC) as batch, spaces_database.connect(SYNC) as person:
        agreed = await agree(batch, OLD)
        transaction = person.transaction()
        await transaction.start()
        await accept(person, NEW, ["s.pages"])
        beginning = asyncio.create_task(batch.fetchval(f"SELECT {SHARE_CHANGES}"))
        await _waits_for_a_lock(spaces_database, 1)
        await transaction.commit()
        assert await beginning == agreed.changes + 1


async def test_a_new_mapping_is_refused_while_a_tenant_is_away(spaces_database: Database) -> None:
    async with spaces_database.connect() as admin, spaces_database.connect(SYNC) as one:
        await agree(one, OLD)
        await admin.execute(
            "INSERT INTO crossfade.tenant (tenant_id, phase) VALUES ($1, 'postgres')", UUID(int=1)
        )
        with pytest.raises(MappingError, match="no longer in phase mongo"):
            await accept(one, NEW, ["s.pages"])
        await accept(one, NEW, ["s.users"])  # whose mapping is the same


async def test_a_copy_that_is_asked_for_anew_can_neither_go_on_nor_end(spaces_database: Database) -> None:
    async with publisher(spaces_database) as one, spaces_database.connect(SYNC) as person:
        await one.agree(OLD)
        number = await one.begin_copy("s.pages", (await one.copies())["s.pages"], INCARNATION, 10, 1 << 32)
        assert number == 1 and await one.advance_copy("s.pages", 1, b"c", 5, 0.1, 50.0)
        await accept(person, OLD, ["s.pages"])
        assert not await one.advance_copy("s.pages", 1, b"d", 9, 0.2, 50.0)
        assert not await one.finish_copy("s.pages", 1)
        pending = (await one.copies())["s.pages"]
        assert (pending.state, pending.cursor, pending.copied) == ("pending", None, 0)
        # Two publishers that see it begin one copy between them.
        assert await one.begin_copy("s.pages", pending, INCARNATION, 10, 1 << 32) == 2
        assert await one.begin_copy("s.pages", pending, INCARNATION, 10, 1 << 32) is None
        assert not await one.finish_copy("s.pages", 1)
        assert await one.finish_copy("s.pages", 2)
        assert (await one.copies())["s.pages"].state == "copied"


async def test_a_copy_of_which_kafka_lost_a_part_does_not_end_as_copied(spaces_database: Database) -> None:
    async with publisher(spaces_database) as one, spaces_database.connect() as admin:
        await one.agree(OLD)
        number = await one.begin_copy("s.pages", (await one.copies())["s.pages"], INCARNATION, 10, 1 << 32)
        assert number is not None
        await admin.execute(
            "UPDATE crossfade.collection SET copy_state = 'invalid' WHERE namespace = 's.pages'"
        )
        assert not await one.finish_copy("s.pages", number)
        assert (await one.copies())["s.pages"].state == "invalid"


async def test_a_publisher_of_the_old_mapping_begins_no_copy_for_the_new_one(
    spaces_database: Database,
) -> None:
    async with publisher(spaces_database) as one, spaces_database.connect(SYNC) as person:
        await one.agree(OLD)
        before = (await one.copies())["s.pages"]
        await accept(person, NEW, ["s.pages"])
        assert await one.begin_copy("s.pages", before, INCARNATION, 10, 1 << 32) is None


async def test_the_reader_may_not_accept(spaces_database: Database) -> None:
    async with spaces_database.connect(SYNC) as one, spaces_database.connect("crossfade_reader") as reader:
        await agree(one, OLD)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await accept(reader, NEW, ["s.pages"])
