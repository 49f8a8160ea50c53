"""A rogue write that is still on its way when a tenant is rolled back is undone first, never kept."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.support.edges import held
from tests.support.moving import cutover, moving, phase, tenants_of
from tests.support.world import once
from worker.embedded import Services


async def test_a_rogue_write_on_its_way_holds_a_rollback_up(services: Services, tmp_path: Path) -> None:
    async with moving(services, tmp_path, tenants=2, documents=200) as w:
        tenant = (await tenants_of(w))[0]
        code, results = await cutover(w, str(tenant), "--window", "60")
        assert code == 0, results
        lead = await w.mongo["leads"].find_one({"tenantId": tenant})
        async with held(w, tenant, "rollback.closed") as move:
            # Nobody publishes any more, so apply does not hear of it.
            w.processes["publish"].send_signal(signal.SIGSTOP)
            try:
                await w.mongo["leads"].delete_one({"_id": lead["_id"]})
                code, result = await move.ended()
            finally:
                w.processes["publish"].send_signal(signal.SIGCONT)
        assert code == 1 and "not drained within 1 s" in result["reason"], result
        assert await phase(w, tenant) == "postgres"
        code, told = await once(w, "rollback", str(tenant), "--window", "120")
        assert code == 0, told
        await w.settled()
        assert await w.mongo["leads"].find_one({"_id": lead["_id"]}) == lead
        assert await w.unequal() == []
