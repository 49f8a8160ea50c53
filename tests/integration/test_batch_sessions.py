"""A batch that takes long between two statements is given more time when it is tried again."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.world import world
from worker.embedded import Services
from worker.postgres import batch_sessions
from worker.postgres.batch_sessions import BatchSessions
from worker.postgres.connect import connect
from worker.postgres.faults import FAULTS, Action, action_for


async def test_a_slow_batch_comes_through_at_last(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_sessions, "_SILENT", 0.5)
    async with world(services, tmp_path) as w:
        sessions = BatchSessions(replica=True)

        async def batch(seconds: float) -> None:
            connection = await connect(services.dsn("crossfade_sync", w.name), "a test")
            try:
                async with sessions.begun(connection):
                    time.sleep(seconds)  # noqa: ASYNC251 - nothing of this process goes on
                    await connection.execute("SELECT 1")
            finally:
                connection.terminate()

        for _ in range(2):  # 0.5 and 1 s are not enough
            with pytest.raises(FAULTS) as ended:
                await batch(1.5)
            assert action_for(ended.value)[0] is Action.RETRY
        await batch(1.5)
        with pytest.raises(FAULTS):  # it was committed: the next one has the usual time
            await batch(1.5)
