"""Moves of one command: so many at a time; and one that is held up is tried again, within its window."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import uuid4

from tests.support.moving import moving, phase, tenants_of
from tests.support.world import once
from worker.embedded import Services

ABORTED = "SELECT count(*) FROM crossfade.transition WHERE from_phase = 'draining' AND to_phase = 'mongo'"


async def test_so_many_move_at_a_time_and_again_within_the_window(services: Services, tmp_path: Path) -> None:
    async with moving(services, tmp_path, documents=300, tenants=5) as w:
        home, *others = await tenants_of(w)
        told_in = tmp_path / "told"
        hook = f"echo begins >> {told_in}; sleep 1; echo ends >> {told_in}"
        only = f'test "$CROSSFADE_TRANSITION" = fence || exit 0; {hook}'
        many = ("--at-once", "2", "--window", "60", "--rehearse", "--before", only)
        code, told = await once(w, "cutover", *map(str, others), *many)
        assert code == 0, told
        at_once = [0]
        for line in told_in.read_text().splitlines():
            at_once.append(at_once[-1] + (1 if line == "begins" else -1))
        assert max(at_once) == 2 and at_once[-1] == 0 and len(at_once) > 2 * len(others), at_once

        before = await w.value(ABORTED)
        async with await w.client.start_session() as session:
            session.start_transaction()
            lead = {"_id": uuid4(), "tenantId": home, "email": "a@b.example"}
            await w.mongo["leads"].insert_one(lead, session=session)
            force = ("--force", "open-transactions-mongodb", "--window", "90")
            move = asyncio.create_task(once(w, "cutover", str(others[0]), *force))
            await w.until_value(ABORTED, before + 1)
            await session.abort_transaction()
        code, told = await move
        assert code == 0 and "held up" in told and "trying again" in told, told
        assert await phase(w, others[0]) == "postgres"
