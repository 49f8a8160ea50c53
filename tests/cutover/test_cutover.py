"""A tenant moves while the application writes: MongoDB refuses it then, and PostgreSQL takes its writes."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from pymongo.errors import WriteError

from tests.support.moving import LEAD, application, cutover, moving, phase, tenants_of
from tests.support.world import once
from worker.embedded import Services


async def test_a_tenant_moves_while_the_application_writes(services: Services, tmp_path: Path) -> None:
    async with moving(services, tmp_path) as w:
        moved, home = (await tenants_of(w))[:2]
        async with application(w, moved) as app:
            with pytest.raises(asyncpg.PostgresError) as refused:
                await app.execute(LEAD, uuid4(), moved)
            assert refused.value.sqlstate == "XF001"
        code, told = await once(w, "cutover", "check", str(moved))
        assert code == 0, told
        async with w.writes(50):
            code, results = await cutover(w, str(moved), "--rehearse", "--window", "60")
            print(results)
            assert code == 0 and results[0]["reason"] == "it is a rehearsal", results
            assert await phase(w, moved) == "mongo"
            await w.mongo["leads"].update_one({"tenantId": moved}, {"$set": {"name": "still at home"}})
            hook = f'echo "$CROSSFADE_TRANSITION $CROSSFADE_TENANTS" >> {tmp_path / "hooked"}; exit 7'
            code, results = await cutover(w, str(moved), "--window", "60", "--after", hook)
            print(results)
            assert code == 0, results  # an `after` hook that fails changes nothing
            hooked = (tmp_path / "hooked").read_text().splitlines()
            assert hooked[-1] == f"postgres {moved}" and set(hooked[:-1]) <= {
                f"draining {moved}",
                f"mongo {moved}",  # a try that did not fit the window
            }, hooked
        assert await phase(w, moved) == "postgres"
        lead = await w.mongo["leads"].find_one({"tenantId": moved})
        with pytest.raises(WriteError) as fenced:
            await w.mongo["leads"].update_one({"_id": lead["_id"]}, {"$set": {"name": "late"}})
        assert fenced.value.code == 121
        await w.mongo["leads"].update_one({"tenantId": home}, {"$set": {"name": "at home"}})
        async with application(w, moved) as app:
            await app.execute(LEAD, uuid4(), moved)
        async with application(w, home) as app:
            with pytest.raises(asyncpg.PostgresError) as refused:
                await app.execute(LEAD, uuid4(), home)
            assert refused.value.sqlstate == "XF001"
