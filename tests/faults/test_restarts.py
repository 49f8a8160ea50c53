"""Services killed and started again under live writes: nothing is lost, and nobody has to help."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.support.world import world
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


@pytest.mark.timeout(700)
async def test_mongod_kafka_and_postgres_killed_in_turn_under_writes(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(4000, tenants=5)
        await w.start("run", "run")
        async with w.writes(50) as writer:
            await w.settled(180)
            for name, role in FAULTS:
                changes = writer.counters.changes
                await services.kill(name)
                for child in psutil.Process(w.processes["run"].pid).children():
                    if child.cmdline()[-1] == role:
                        child.kill()
                if name != "mongod":  # long enough that everybody meets it
                    await w.until("writes go on", lambda n=changes: writer.counters.changes > n + 50)
                await services.start(name)
                await w.settled(180)
                assert writer.counters.changes > changes
        await w.settled(180)
        await w.assert_nothing_lost()
        assert "Traceback" not in (tmp_path / "run.log").read_text()
        assert await w.stop("run") == 0
