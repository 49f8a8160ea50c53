"""A session that PostgreSQL ends while a role starts is told in one line, and the next start goes on."""

from __future__ import annotations

from pathlib import Path

from tests.support.world import world
from worker.embedded import Services

_WAITING = """
SELECT pid FROM pg_stat_activity
WHERE application_name = 'crossfade apply' AND datname = current_database() AND wait_event_type = 'Lock'
"""


async def test_a_session_that_ends_while_apply_starts_is_no_traceback(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        holder = await w.connect()
        async with holder.transaction():
            await holder.execute("LOCK TABLE crossfade.collection")
            await w.start("apply", "apply")
            await w.until_value(f"SELECT count(*) FROM ({_WAITING}) w", 1)
            await w.value(f"SELECT pg_terminate_backend(pid) FROM ({_WAITING}) w")
            assert await w.ended("apply") == 1  # no matter for a person
        await holder.close()
        log = (w.directory / "apply.log").read_text()
        assert "PostgreSQL refuses apply's start" in log and "Traceback" not in log, log
