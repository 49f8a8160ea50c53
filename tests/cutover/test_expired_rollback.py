"""A tenant comes home though a TTL index has deleted documents of it; then their rows go as well."""

from __future__ import annotations

from pathlib import Path

from tests.support.expiring import expiring, grow_old, ttl_index
from tests.support.moving import application, cutover, moving, phase, tenants_of
from tests.support.way_back import brought_back
from tests.support.world import once
from worker.embedded import Services

EXPIRED = "SELECT count(*) FROM crossfade.dead_letter WHERE kind = 'expired' AND state = '{}'"


async def test_a_tenant_with_expired_documents_comes_home(services: Services, tmp_path: Path) -> None:
    async with moving(services, tmp_path, tenants=2, documents=200) as w:
        tenant = (await tenants_of(w))[0]
        old = await grow_old(w, tenant, 3)
        await w.settled()
        code, results = await cutover(w, str(tenant), "--window", "60")
        assert code == 0, results
        ids = [one["_id"] for one in old]
        async with application(w, tenant) as sql:  # so that the rollback looks at them
            await sql.execute("UPDATE leads SET phone = '1' WHERE id = ANY($1)", ids)
        await brought_back(w)
        await w.settled()
        async with expiring(w):
            await ttl_index(w)
            await w.until_value(EXPIRED.format("discarded"), len(old))
            code, told = await once(w, "rollback", str(tenant), "--window", "60")
            assert code == 0, told
        assert await phase(w, tenant) == "mongo"
        await w.until_value(EXPIRED.format("healed"), len(old))
        assert await w.value("SELECT count(*) FROM leads WHERE id = ANY($1)", ids) == 0
        await w.settled()
        assert await w.unequal() == []
        code, told = await once(w, "cutover", "check", str(tenant))
        assert "ok     dead-letters" in told, told
