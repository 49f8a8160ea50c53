"""Each check that must hold before a move fails where it should, by its name; what is forced is noted."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import orjson
import pytest
import pytest_asyncio
from bson import Binary
from pymongo.errors import OperationFailure

from tests.cutover.test_in_the_pause import LETTER, NO_LETTER
from tests.support.edges import bring
from tests.support.moving import moving, phase, tenants_of
from tests.support.world import World, once
from worker.embedded import Services
from worker.mongo.fence_documents import FenceDocuments
from worker.postgres.fences import FENCE

pytestmark = pytest.mark.asyncio(loop_scope="module")
BEHIND = "SELECT (min(heartbeat_at) < now() - interval '3.5 s')::integer FROM crossfade.partition_progress"
HOLD = """
UPDATE crossfade.document SET state = 'refetch'
WHERE row_id = (SELECT min(row_id::text)::uuid FROM crossfade.document WHERE tenant_id = $1)
"""
STALE = "UPDATE crossfade.generation SET finished_at = finished_at - interval '25 hours'"
BROKEN = (
    "UPDATE crossfade.collection SET copy_state = 'invalid' WHERE namespace LIKE '%.leads'",
    f'DROP TRIGGER "{FENCE}" ON leads',
    "UPDATE pg_class SET reltuples = -1 WHERE oid = 'pages'::regclass",
)
DANGLES = """
UPDATE pages SET author_id = gen_random_uuid()
WHERE id = (SELECT min(id::text)::uuid FROM pages WHERE tenant_id = $1)
"""
WRONG = {
    "phase": " is in postgres",
    "decision": ": draining",
    "copied": ".leads is invalid",
    "clean": "s old",
    "lag": " s behind, by heartbeats",
    "dead-letters": "1 stand of it",
    "held": "1 documents wait",
    "orphans": "1 of pages (author_id) -> users",
    "fences": f"leads lacks {FENCE}",
    "way-back": "a canary did not come from MongoDB to PostgreSQL",
    "open-transactions-mongodb": "session ",
    "analysed": "pages",
}
FORCED = "SELECT subject::text FROM crossfade.audit WHERE action = 'cutover: checks overruled'"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def w(services: Services, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with moving(services, tmp_path_factory.mktemp("checks"), documents=300, tenants=3) as made:
        yield made


async def _open(w: World, tenant: UUID, session: object) -> None:
    lead = {"_id": uuid4(), "tenantId": tenant, "email": "a@b.example"}
    await w.mongo["leads"].insert_one(lead, session=session)  # pyright: ignore
    since = w.client.admin
    while True:
        found = since.aggregate([{"$currentOp": {"idleSessions": True, "allUsers": True}}])
        open_ = [
            one async for one in found if one.get("transaction", {}).get("timeOpenMicros", 0) > 1_100_000
        ]
        if open_:
            return


async def _kill_as_told(w: World, remedy: str) -> None:
    """Run what is to be given to mongosh."""
    told = re.search(r'ByPattern: \[{lsid: {id: UUID\("(.+)"\), uid: BinData\(0, "(.+)"\)}}]', remedy)
    assert told, remedy
    session = {"id": Binary(bytes.fromhex(told[1]), 4), "uid": b64decode(told[2])}
    await w.client.admin.command("killAllSessionsByPattern", [{"lsid": session}])


async def test_what_is_forced_is_noted_and_most_cannot_be(w: World) -> None:
    tenant, other = (await tenants_of(w))[:2]
    code, told = await once(w, "cutover", str(tenant), "--force", "copied")
    assert code == 2 and "open-transactions-mongodb" in told, told
    assert await w.value(FORCED) is None
    async with await w.client.start_session() as session:
        session.start_transaction()
        await _open(w, other, session)
        code, told = await once(w, "cutover", "check", str(tenant))
        (line,) = (one for one in told.splitlines() if " open-transactions-mongodb " in one)
        assert code == 1 and line.startswith("FAILED") and "session " in line, told
        remedy = told
        code, told = await once(w, "cutover", str(tenant), "--force", "open-transactions-mongodb")
        assert code == 1 and "held up" in told, told
        await _kill_as_told(w, remedy)
        with pytest.raises(OperationFailure, match="has been aborted"):
            await w.mongo["leads"].find_one(session=session)
    assert orjson.loads(await w.value(FORCED)) == {
        "tenants": [str(tenant)],
        "checks": ["open-transactions-mongodb"],
    }
    assert await phase(w, tenant) == "mongo"


async def test_what_postgresql_does_not_let_begin_is_told(w: World) -> None:
    tenant = (await tenants_of(w))[0]
    await w.execute("REVOKE SELECT ON crossfade.collection FROM crossfade_control")
    code, told = await once(w, "cutover", str(tenant))
    await w.execute("GRANT SELECT ON crossfade.collection TO crossfade_control")
    assert code == 2 and "PostgreSQL refuses cutover (42501" in told and "Traceback" not in told, told


async def test_each_fails_where_it_should(w: World) -> None:
    """Last of the module: nothing is mended."""
    away, tenant, other = await tenants_of(w)
    await bring(w, away, "postgres")
    for name in ("reconcile", "publish"):
        assert await w.stop(name) == 0
    fences = FenceDocuments(w.client, w.env["CROSSFADE_PUBLISHER"])
    assert await fences.leave({tenant: 9}, {tenant: [tenant]}, "a test", 600)
    await w.execute(LETTER, f"{w.name}.leads", tenant)
    await w.execute(HOLD, tenant)
    await w.execute(STALE)
    for statement in BROKEN:
        await w.execute(statement)
    await w.spoil(DANGLES, tenant)
    async with await w.client.start_session() as session:
        session.start_transaction()
        await _open(w, other, session)
        await w.until_value(BEHIND, 1)
        code, told = await once(w, "cutover", "check", str(away), str(tenant), "--json")
        await session.abort_transaction()
    await w.execute(NO_LETTER)
    made = {one["name"]: one for one in orjson.loads(told[told.index("[") :])}
    assert code == 1
    for name, reason in WRONG.items():
        assert not made[name]["ok"] and reason in made[name]["reason"] and made[name]["remedy"], made[name]
    right = {name for name, one in made.items() if one["ok"]}
    assert {"bypass-validation", "index-builds", "ttl-indexes", "roles", "validators"} <= right, made
