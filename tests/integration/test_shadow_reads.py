"""What shadow reads find reaches the operator, and cannot be used for anything else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import orjson
import pytest
import pytest_asyncio

from crossfade_client import Router, Side
from crossfade_client.shadow import Shadows
from crossfade_client.sources import Away
from tests.support import moves
from tests.support.world import once
from worker import metrics
from worker.control import observed
from worker.embedded import Services
from worker.postgres.shadow_reads import read_shadow_reads

TELL = "SELECT crossfade.tell_shadow_reads($1::jsonb)"


@pytest_asyncio.fixture
async def move(services: Services, tmp_path: Path) -> AsyncIterator[moves.Moved]:
    async with moves.moved(services, tmp_path) as made:
        yield made


async def tell(move: moves.Moved, *found: dict[str, Any]) -> None:
    connection = await asyncpg.connect(move.dsn)
    try:
        await connection.execute(TELL, json.dumps(found, default=str))
    finally:
        await connection.close()


async def test_status_and_metrics_tell_what_a_client_has_found(move: moves.Moved) -> None:
    async def unit(side: Side) -> list[dict[str, object]]:
        return [{"_id": "a\0", "name": side.name, "secret": "same"}]

    async def same(_side: Side) -> None:
        return None

    async with Router(move.dsn) as router:
        router.shadows.settle = 0
        await router.shadow_read(move.tenant, unit, share=1)
        await move.world.until("compared", lambda: router.shadows.different == 1)
        await router.shadow_read(move.tenant, same, share=1)
        await move.world.until("compared", lambda: router.shadows.equal == 1)
    code, output = await once(move.world, "status", "--json")
    assert code == 0, output
    told = orjson.loads(output[output.index("{\n") :])["shadow_reads"]
    assert told["outcomes"] == {"equal": 1, "different": 1, "unsettled": 0, "failed": 0, "left_out": 0}
    (place,) = told["places"]
    assert (place["tenant"], place["id"], place["path"]) == (str(move.tenant), "a?", "name")
    assert "same" not in output
    connection = await move.world.connect()
    try:
        await observed.look(connection)
    finally:
        await connection.close()
    value = metrics.CONTROL.get_sample_value
    assert value("crossfade_control_shadow_reads_total", {"outcome": "different"}) == 1


async def test_what_cannot_be_told_waits() -> None:
    shadows, tenant, told = Shadows(), uuid4(), list[str]()
    shadows._count(tenant, "different", [("a", "b")])

    async def away(_report: str) -> None:
        raise Away

    async def take(report: str) -> None:
        told.append(report)

    with pytest.raises(Away):
        await shadows.report(away)
    shadows._count(tenant, "different", [("a", "b"), ("c", "d")])
    await shadows.report(take)
    await shadows.report(take)
    assert [json.loads(one) for one in told] == [
        [{"tenant": str(tenant), "places": [["a", "b"], ["c", "d"]], "different": 2}]
    ]


async def test_a_report_stays_within_bounds_whatever_an_application_tells() -> None:
    shadows, told = Shadows(), list[str]()

    async def take(report: str) -> None:
        told.append(report)

    for _ in range(1200):
        tenant = uuid4()
        shadows._count(tenant, "different", [("\U0001f600" * 300, f"{n}" * 300) for n in range(300)])
    await shadows.report(take)
    tenants = [one for report in told for one in json.loads(report)]
    assert len(tenants) == 1000 and {len(one["places"]) for one in tenants} == {100}
    assert max(map(len, told)) < 262_144


async def test_only_so_much_is_kept_and_of_known_tenants_only(move: moves.Moved) -> None:
    places = [[f"{n}", "p" * 500] for n in range(150)]
    await tell(
        move,
        {"tenant": move.tenant, "equal": 2**62, "different": -5, "places": places},
        {"tenant": uuid4(), "equal": 1, "places": places},
        {"tenant": move.tenant, "equal": 1, "places": [["odd"], "odd", [None, "x"], {}]},
    )
    await tell(move, {"tenant": move.tenant, "places": [["another", "p"], ["0", "p" * 200]]})
    connection = await move.world.connect()
    try:
        found = await read_shadow_reads(connection, 1000)
    finally:
        await connection.close()
    assert (found.tenants, found.counts["equal"], found.counts["different"]) == (1, 1_000_001, 0)
    assert found.different_places == 100 and {len(one.path) for one in found.places} == {200}
    assert {one.tenant for one in found.places} == {move.tenant}
    assert [one.reports for one in found.places if one.subject == "0"] in ([2], [])


async def test_an_application_cannot_read_or_change_what_was_told(move: moves.Moved) -> None:
    connection = await asyncpg.connect(move.dsn)
    try:
        for statement in (
            "SELECT * FROM crossfade.shadow_read",
            "SELECT * FROM crossfade.shadow_difference",
            f"INSERT INTO crossfade.shadow_read (tenant_id) VALUES ('{UUID(int=1)}')",
            "DELETE FROM crossfade.shadow_difference",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
        for wrong in ("null", "{}", json.dumps([{"tenant": str(move.tenant), "places": ["x" * 300_000]}])):
            with pytest.raises(asyncpg.InvalidParameterValueError):
                await connection.execute(TELL, wrong)
    finally:
        await connection.close()
    assert not await move.world.value(
        "SELECT has_function_privilege('public', 'crossfade.tell_shadow_reads(jsonb)', 'EXECUTE')"
    )
