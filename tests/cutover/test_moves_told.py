"""Moves as `control` tells them to Prometheus, and `crossfade status` to a person."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson

from tests.support.moving import LEAD, application, cutover, moving, phase, tenants_of
from tests.support.world import World, once
from worker.embedded import Services
from worker.embedded.state import free_port

FAULT = """
INSERT INTO crossfade.way_back_fault (tenant_id, kind, namespace, subject, reason)
VALUES ($1, 'unmapped', 's.leads', 'shoe_size', 'the mapping does not know it')
"""
BARRIERS = """
INSERT INTO crossfade.reverse_barrier (barrier_id, asked_at, sent_at, partitions)
SELECT gen_random_uuid(), now() - interval '1 minute' * age, now(), age FROM unnest($1::int[]) age
"""
ARRIVED = """
INSERT INTO crossfade.barrier (barrier_id, topic, partition, partitions, incarnation, arrived_at)
SELECT gen_random_uuid(), 'topic', 0, age, gen_random_uuid(), now() - interval '1 minute' * age
FROM unnest($1::int[]) age
"""
OPENED = """
SELECT count(*) FROM crossfade.transition WHERE tenant_id = $1 AND evidence->'steps_ms' ? 'open'
    AND (from_phase, to_phase) IN
        (('draining', 'postgres'), ('rolling_back', 'postgres'), ('opening', 'mongo'))
"""
KEPT = "SELECT array_agg(partitions) FROM crossfade.reverse_barrier WHERE asked_at < now() - interval '9 min'"
AT_ONCE = ("--deadline", "10")  # the first try succeeds, though a busy machine is slow
_PHASE = (
    "UPDATE crossfade.tenant SET phase = $2::text::crossfade.phase, changed_at = now() - interval '90 s' "
)


def sample(text: str, name: str, **labels: str) -> float | None:
    """Return a sample of what a process serves."""
    for line in text.splitlines():
        match = re.fullmatch(rf"{name}(?:{{(.*)}})? (\S+)", line)
        if match and dict(re.findall(r'(\w+)="([^"]*)"', match[1] or "")) == labels:
            return float(match[2])
    return None


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
        return reply.read().decode()


async def until(port: int, value: float, name: str, **labels: str) -> str:
    """Wait until a process serves this value; return all that it serves."""
    text = ""
    async with asyncio.timeout(30):
        while sample(text, name, **labels) != value:
            try:
                text = await asyncio.to_thread(scrape, port)
            except OSError:
                text = ""
            await asyncio.sleep(0.1)
    return text


async def told(w: World) -> dict[str, Any]:
    code, output = await once(w, "status", "--json")
    assert code == 0, output
    return orjson.loads(output[output.index("{\n") :])


async def test_moves_are_counted_whoever_makes_them(services: Services, tmp_path: Path) -> None:
    moves, pauses = "crossfade_control_moves_total", "crossfade_control_pause_seconds"
    port, api = free_port(set()), free_port(set())
    async with moving(services, tmp_path) as w:
        moved, other = (await tenants_of(w))[:2]
        env = {"CROSSFADE_METRICS_PORT": str(port), "CROSSFADE_CONTROL_PORT": str(api)}
        await w.start("control", "control", **env)
        text = await until(port, 0, moves, kind="cutover", outcome="done")
        assert sample(text, f"{pauses}_count", kind="rollback", outcome="done") == 0
        assert sample(text, "crossfade_control_tenants", state="mongo") == 3
        assert (await cutover(w, str(moved), "--rehearse", *AT_ONCE))[0] == 0
        code, [result] = await cutover(w, str(moved), *AT_ONCE)
        assert code == 0
        async with application(w, moved) as app:
            await app.execute(LEAD, uuid4(), moved)
        await w.execute(BARRIERS, [120, 30])
        await w.execute(ARRIVED, [120, 30])
        assert (await once(w, "rollback", str(moved), "--rehearse", *AT_ONCE))[0] == 0
        code, output = await once(w, "rollback", "--all", *AT_ONCE)
        assert code == 0 and await phase(w, moved) == "mongo", output
        code, output = await once(w, "rollback", "--all")
        assert code == 0 and "there is no such tenant" in output, output
        for wrong in ((), ("--all", str(moved))):
            code, output = await once(w, "rollback", *wrong)
            assert code == 2 and "name tenants, or --all" in output, output
        text = await until(port, 1, moves, kind="rollback", outcome="done")
        for kind in ("cutover", "rollback"):
            for outcome, count in (("done", 1), ("rehearsed", 1), ("aborted", 0)):
                assert sample(text, moves, kind=kind, outcome=outcome) == count, (kind, outcome)
                assert sample(text, f"{pauses}_count", kind=kind, outcome=outcome) == count, (kind, outcome)
        total = sample(text, f"{pauses}_sum", kind="cutover", outcome="done")
        assert total is not None and abs(total * 1000 - result["pause_ms"]) < 1000
        shown = (await told(w))["moves"]
        assert [(one["kind"], one["outcome"]) for one in shown["last"]] == [
            ("rollback", "done"),
            ("rollback", "rehearsed"),
            ("cutover", "done"),
            ("cutover", "rehearsed"),
        ]
        assert all(one["pause_ms"] > 0 for one in shown["last"])
        assert await w.value(OPENED, moved) == 3, "the pause lasts until the tenant can write"
        assert shown["ended"]["cutover"] == {"done": 1, "rehearsed": 1, "aborted": 0}
        # What they noted for themselves does not pile up.
        assert await w.value("SELECT array_agg(partitions) FROM crossfade.barrier") == [30]
        assert await w.value(KEPT) == [30]
        await what_stands_is_told(w, port, other)


async def what_stands_is_told(w: World, port: int, tenant: Any) -> None:
    """A tenant that stays in between, a broken way back, a letter of a rogue write."""
    await w.execute(FAULT, tenant)
    # Nobody sets this phase, and so nobody brings it to an end.
    await w.execute(_PHASE + "WHERE tenant_id = $1", tenant, "aborting")
    text = await until(port, 1, "crossfade_control_tenants", state="aborting")
    age = sample(text, "crossfade_control_moving_age_seconds", state="aborting")
    assert age is not None and 90 <= age < 180
    assert sample(text, "crossfade_control_rogue_letters") == 0
    shown = await told(w)
    [one] = shown["moves"]["moving"]
    assert (one["tenant"], one["phase"]) == (str(tenant), "aborting") and 90 <= one["seconds"] < 180
    assert shown["way_back"]["faults"][0]["subject"] == "shoe_size"
    assert shown["way_back"]["broken_tenants"] == 1
