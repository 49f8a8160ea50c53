"""Services killed and started again under live writes: nothing is lost, and nobody has to help."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.support.world import World, world
from worker.embedded import Services
from worker.embedded.state import ServiceName

# The service to kill, and the role that is killed with it, so that it starts while the service is away.
FAULTS: tuple[tuple[ServiceName, str | None], ...] = (
    ("postgres", None),
    ("postgres", "apply"),
    ("kafka", None),
    ("kafka", "publish"),
    ("mongod", None),
)


def _child(w: World, role: str) -> psutil.Process | None:
    """Return the process that `crossfade run` keeps for a role, when there is one."""
    for child in psutil.Process(w.processes["run"].pid).children():
        with suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE and child.cmdline()[-1:] == [role]:
                return child
    return None


async def _kill(w: World, role: str) -> psutil.Process:
    await w.until(f"{role} runs", lambda: _child(w, role) is not None)
    child = _child(w, role)
    assert child is not None
    child.kill()
    return child


@pytest.mark.timeout(700)
async def test_mongod_kafka_and_postgres_killed_in_turn_under_writes(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(4000, tenants=5)
        await w.start("run", "run")
        await w.start("apply", "second apply")
        async with w.writes(50) as writer:
            await w.until_value("SELECT sum(applied) FROM crossfade.partition_progress", 500)
            await w.kill("second apply")
            for _ in range(2):
                publish = await _kill(w, "publish")
                await w.until("started again", lambda old=publish: _child(w, "publish") not in (None, old))
            await w.start("apply", "third apply")
            await w.settled(180)
            for name, role in FAULTS:
                changes = writer.counters.changes
                await services.kill(name)
                if role is not None:
                    await _kill(w, role)
                if name != "mongod":  # long enough that everybody meets it
                    await w.until("writes go on", lambda n=changes: writer.counters.changes > n + 50)
                await services.start(name)
                await w.settled(180)
                assert writer.counters.changes > changes
        await w.settled(180)
        await w.assert_nothing_lost()
        for name in ("run", "third apply"):
            assert "Traceback" not in (tmp_path / f"{name}.log").read_text()
        assert await w.stop("run") == 0
