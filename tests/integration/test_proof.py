"""Which generation counts as clean, for all tenants and for one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.support.schema_database import Database
from worker.postgres import mismatches, proof, reconciliation
from worker.postgres.connect import Connection, connect
from worker.postgres.reconciliation import Ended, Generation
from worker.reconcile.judge import Identity, Look, Mismatch
from worker.reconcile.recheck import to_row

pytest_plugins = ["tests.support.schema_fixtures"]

ONE, TWO = UUID(int=1), UUID(int=2)
AT = datetime(2024, 1, 1, tzinfo=UTC)
PUBLISHER = "p"


class Kept:
    """What a reconciler keeps, without one: generations and mismatches as it would save them."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def begin(
        self, kind: str = "full", tenant: UUID | None = None, began_time: int = 100
    ) -> Generation:
        return await reconciliation.resume_or_begin(
            self.connection, PUBLISHER, kind, tenant, began_time=began_time
        )

    async def end(self, generation: Generation) -> Ended | None:
        return await reconciliation.finish(self.connection, generation, PUBLISHER)

    async def full(self, tenant: UUID | None = None) -> int:
        generation = await self.begin("full", tenant)
        assert await self.end(generation) is not None
        return generation.number

    async def changes(self) -> int:
        generation = await self.begin("changes")
        assert await self.end(generation) is not None
        return generation.number

    async def settling(self, tenant: UUID | None = ONE, row: UUID | None = None) -> Mismatch:
        """Let a document be seen that does not fit."""
        look = Look(Identity("s.pages", uuid4(), "s.pages", b""), "different", 1, 2, tenant, row_tenant=row)
        one = Mismatch(look, "settling", "seen once", 0, AT, AT, AT, 0, None)
        await mismatches.add(self.connection, [to_row(one)])
        return one

    async def real(self, one: Mismatch) -> None:
        """Let a further look prove it."""
        await mismatches.save(self.connection, [to_row(one) | {"state": "real"}])
        await proof.spoil(self.connection, [one.look.key])

    async def fits(self, one: Mismatch) -> None:
        await mismatches.drop(self.connection, [one.look.key])

    async def clean(self, tenant: UUID | None = None) -> int | None:
        found = await proof.clean(self.connection, PUBLISHER, tenant)
        return found and found.generation

    async def run(self, statement: str, *arguments: Any) -> None:
        await self.connection.execute(statement, *arguments)


@asynccontextmanager
async def kept(database: Database) -> AsyncIterator[Kept]:
    connection = await connect(database.services.dsn("postgres", database.name), "test")
    try:
        for tenant in (ONE, TWO):
            await connection.execute("INSERT INTO crossfade.tenant (tenant_id) VALUES ($1)", tenant)
        await connection.execute(
            "INSERT INTO crossfade.collection (namespace, mapping_hash, copy_state) "
            "VALUES ('s.pages', '', 'copied')"
        )
        yield Kept(connection)
    finally:
        connection.terminate()


async def test_only_what_has_ended_after_a_full_one_counts(spaces_database: Database) -> None:
    async with kept(spaces_database) as k:
        assert await k.changes() and await k.clean() is None
        full = await k.begin()
        during = await k.changes()
        assert await k.clean() is None, "the full one has not ended"
        assert await k.end(full) == (0, 0, 0)
        assert (await k.clean(), await k.clean(ONE)) == (full.number, full.number), during
        after = await k.changes()
        assert await k.clean() == after


async def test_a_generation_that_is_begun_anew_never_counts(spaces_database: Database) -> None:
    async with kept(spaces_database) as k:
        given_up = await k.begin()
        again = await reconciliation.resume_or_begin(k.connection, PUBLISHER, "full", None, afresh=True)
        assert await k.end(given_up) is None
        assert await k.clean() is None
        await k.end(again)
        assert await k.clean() == again.number


async def test_what_was_wrong_at_its_end_and_is_mended_later_was_not_clean(spaces_database: Database) -> None:
    async with kept(spaces_database) as k:
        before = await k.full()
        changes = await k.begin("changes")
        one = await k.settling()
        await k.real(one)
        assert await k.end(changes) == (0, 1, 0)
        assert (await k.clean(), await k.clean(ONE)) == (before, before)
        assert await k.clean(TWO) == changes.number
        await k.fits(one)
        assert (await k.clean(), await k.clean(ONE)) == (before, before)
        assert await k.changes() == await k.clean() == await k.clean(ONE)


async def test_what_settles_at_its_end_counts_when_it_has_settled_and_not_when_it_was_wrong(
    spaces_database: Database,
) -> None:
    async with kept(spaces_database) as k:
        before = await k.full()
        changes = await k.begin("changes")
        lag, wrong = await k.settling(ONE), await k.settling(TWO)
        await k.end(changes)
        assert (await k.clean(), await k.clean(ONE), await k.clean(TWO)) == (before, before, before)
        await k.fits(lag)
        assert (await k.clean(ONE), await k.clean(TWO)) == (changes.number, before)
        await k.real(wrong)
        await k.fits(wrong)
        assert (await k.clean(), await k.clean(TWO)) == (before, before), "wrong then, whatever it is now"


async def test_one_that_comes_again_makes_nothing_unclean_that_ended_between(
    spaces_database: Database,
) -> None:
    async with kept(spaces_database) as k:
        first = await k.begin()
        one = await k.settling()
        await k.fits(one)
        await k.end(first)
        between = await k.changes()
        await k.begin("changes")
        # Seen again, by a walk whose number is lower than that of what has ended.
        await mismatches.add(k.connection, [to_row(one)])
        assert await k.clean() == between
        await k.real(one)
        assert await k.clean() == between


async def test_other_tenants_mismatches_make_a_tenants_generation_no_less_clean(
    spaces_database: Database,
) -> None:
    async with kept(spaces_database) as k:
        await k.real(await k.settling(TWO))
        one = await k.full(ONE)
        two = await k.begin("full", TWO)
        assert await k.end(two) == (0, 1, 0)
        assert (await k.clean(ONE), await k.clean(TWO), await k.clean()) == (one, None, None)
        changes = await k.changes()
        assert (await k.clean(ONE), await k.clean(TWO), await k.clean()) == (changes, None, None)


@pytest.mark.parametrize(("tenant", "row"), [(None, None), (TWO, ONE), (ONE, TWO)])
async def test_a_mismatch_is_of_both_its_tenants_and_of_any_where_nobody_can_tell(
    spaces_database: Database, tenant: UUID | None, row: UUID | None
) -> None:
    """A document under another tenant is missing under its own, and is seen by whom it is not."""
    async with kept(spaces_database) as k:
        before, changes = await k.full(), await k.begin("changes")
        one = await k.settling(tenant, row)
        await k.end(changes)
        assert (await k.clean(ONE), await k.clean(TWO)) == (before, before)
        await k.real(one)
        assert await k.end(await k.begin("full", ONE)) == (0, 1, 0)
        assert (await k.clean(ONE), await k.clean(TWO)) == (before, before)
        assert len(await mismatches.read(k.connection, tenant=ONE)) == 1


@pytest.mark.parametrize("tenant", [ONE, None])
async def test_documents_held_make_it_unclean(spaces_database: Database, tenant: UUID | None) -> None:
    async with kept(spaces_database) as k:
        before = await k.full()
        await k.run(
            "INSERT INTO crossfade.document VALUES (1, $1, $2, 1, 0, 'refetch', 1)", UUID(int=7), tenant
        )
        changes = await k.begin("changes")
        assert await k.end(changes) == (0, 0, 1)
        assert (await k.clean(), await k.clean(ONE)) == (before, before)
        assert await k.clean(TWO) == (before if tenant is None else changes.number)
        await k.run("UPDATE crossfade.document SET state = 'live'")
        assert await k.clean() == before
        assert await k.changes() == await k.clean()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE crossfade.collection SET copies = copies + 1",
        "UPDATE crossfade.mapping SET changes = changes + 1",
        "UPDATE crossfade.checkpoint SET incarnation = gen_random_uuid()",
    ],
)
async def test_rows_written_anew_end_what_was_proven(spaces_database: Database, change: str) -> None:
    """And what began before does not count when it ends after."""
    async with kept(spaces_database) as k:
        await k.run(
            "INSERT INTO crossfade.checkpoint (publisher, incarnation, started_time) VALUES ($1, $2, 1)",
            PUBLISHER,
            uuid4(),
        )
        await k.full()
        assert await reconciliation.last_full(k.connection, PUBLISHER) is not None
        full, changes = await k.begin(), await k.begin("changes")
        await k.run(change)
        advanced = reconciliation.advance(k.connection, full.number, {}, {}, publisher=PUBLISHER)
        assert not await advanced
        assert await k.end(full) is None and await k.end(changes) is None
        assert await reconciliation.last_full(k.connection, PUBLISHER) is None
        await k.changes()
        assert (await k.clean(), await k.clean(ONE)) == (None, None)
        assert await k.full() == await k.clean()


async def test_changes_that_nobody_followed_end_what_was_proven(spaces_database: Database) -> None:
    async with kept(spaces_database) as k:
        await k.full()
        changes = await k.begin("changes")
        await reconciliation.forget(k.connection, changes.number)
        assert await k.end(changes) is not None
        assert await k.clean() is None
        assert await k.full() == await k.clean()


async def test_a_tenant_that_came_back_needs_a_full_one_of_its_rows_as_they_are(
    spaces_database: Database,
) -> None:
    async with kept(spaces_database) as k:
        full = await k.full()
        await k.run("UPDATE crossfade.tenant SET floor = 200 WHERE tenant_id = $1", ONE)
        assert (await k.clean(), await k.clean(ONE), await k.clean(TWO)) == (None, None, full)
        assert await k.end(await k.begin(began_time=200)) is not None
        assert await k.clean() == await k.clean(ONE) == full + 1


async def test_tenants_are_told_those_without_a_clean_generation_first(spaces_database: Database) -> None:
    async with kept(spaces_database) as k:
        await k.real(await k.settling(TWO))
        full = await k.full()
        told = await proof.clean_by_tenant(k.connection, PUBLISHER, None, 10)
        assert [(one.tenant_id, one.clean and one.clean.generation) for one in told] == [
            (TWO, None),
            (ONE, full),
        ]
        assert len(await proof.clean_by_tenant(k.connection, PUBLISHER, None, 1)) == 1
        (one,) = await proof.clean_by_tenant(k.connection, PUBLISHER, ONE, 10)
        assert one.tenant_id == ONE
        await k.run("UPDATE crossfade.tenant SET phase = 'postgres' WHERE tenant_id = $1", ONE)
        assert await proof.clean_by_tenant(k.connection, PUBLISHER, ONE, 10) == []


async def test_more_unclean_tenants_than_are_told_make_it_clean_for_none(
    spaces_database: Database,
) -> None:
    async with kept(spaces_database) as k:
        for _ in range(reconciliation.MOST_TOLD + 1):
            await k.settling(uuid4())
        await k.run("UPDATE crossfade.mismatch SET state = 'real'")
        await k.full()
        await k.run("DELETE FROM crossfade.mismatch")
        assert await k.clean(ONE) is None
        assert await k.connection.fetchval("SELECT cardinality(unclean) FROM crossfade.generation") == 1
