"""When a parked event has had its time."""

from __future__ import annotations

import pytest

from tests.support.schema_database import Database
from worker.postgres.dead_letters import take_parked

pytest_plugins = ["tests.support.schema_fixtures"]

PARKED = """
INSERT INTO crossfade.dead_letter (state, kind, reason, namespace, topic, partition, "offset", event,
    batch_id, next_attempt_at, parked_at)
VALUES ('parked', 'unique', '', 's.pages', 'c.s.pages', 0, 1, '', 1, now(), now() - interval '1 hour')
"""
BEAT = """
INSERT INTO crossfade.partition_progress (topic, partition, next_offset, records, applied, superseded, absent,
    echo, switched, parked, dead_lettered, control, heartbeat_at)
VALUES ($1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, now() - make_interval(hours => $2))
"""


@pytest.mark.parametrize(("behind", "overdue"), [(0, True), (2, False)])
async def test_a_collection_that_left_the_mapping_keeps_no_parked_event_alive(
    spaces_database: Database, behind: int, overdue: bool
) -> None:
    """Its topic's heartbeats have ended; those of topics that are read tell the time."""
    async with spaces_database.connect("crossfade_sync") as connection:
        await connection.execute(BEAT, "c.s.gone", 3)
        await connection.execute(BEAT, "c.s.pages", behind)
        await connection.execute(PARKED)
        [letter] = await take_parked(
            connection, most=9, size=9, overdue_after=60, topics=["c.s.pages", "c.s.pages.copy"]
        )
        assert letter.overdue is overdue


async def test_a_clock_that_was_set_back_keeps_no_parked_event_waiting(spaces_database: Database) -> None:
    async with spaces_database.connect("crossfade_sync") as connection:
        await connection.execute(BEAT, "c.s.pages", 0)
        await connection.execute(PARKED)
        for ahead, due in (("2 hours", 1), ("20 seconds", 0)):
            await connection.execute(
                f"UPDATE crossfade.dead_letter SET next_attempt_at = now() + interval '{ahead}'"
            )
            taken = await take_parked(connection, most=9, size=9, overdue_after=60, topics=["c.s.pages"])
            assert len(taken) == due, ahead
