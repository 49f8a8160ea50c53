"""Topics with another number of partitions than was asked for, and one that changes while all runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.spaces.ledger import Ledger
from tests.support.hands import add_partitions, administering, make_topic
from tests.support.world import PARTITIONS, world
from worker.embedded import Services


@pytest.mark.timeout(600)
async def test_partitions_made_by_hand_added_and_taken_away_lose_nothing(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        pages, users = (f"{w.name}.{w.name}.{name}" for name in ("pages", "users"))
        await make_topic(services.kafka_bootstrap, pages, 1)
        await make_topic(services.kafka_bootstrap, users, 3)
        others = 4 * PARTITIONS
        await w.load(300, tenants=3)
        await w.start("run", "run")
        async with w.writes(50):
            await w.settled(240, streams=1 + 3 + others)
            await add_partitions(services.kafka_bootstrap, users, 6)
            log, told = tmp_path / "run.log", f"topic {users} has 6 partitions now, and had 3"
            await w.until("added partitions are noticed", lambda: told in log.read_text())
            applied = f"FROM crossfade.partition_progress WHERE topic = '{users}' AND applied > 0"
            await w.until_value(f"SELECT count(*) {applied}", 6, seconds=120)
        await w.settled(240, streams=1 + 6 + others)
        await w.assert_nothing_lost()

        # made anew with one partition, before all of the others was read
        assert await w.stop("run") == 0
        w.ledger = Ledger()  # what follows is not the application's own writing
        await w.start("publish", "publish")
        await w.mongo["users"].update_many({}, {"$set": {"note": "in a topic that goes"}})
        await w.published()
        assert await w.stop("publish") == 0
        async with administering(services.kafka_bootstrap) as admin:
            await admin.delete_topics([users])
        await w.until_value(f"SELECT count(*) FROM crossfade.partition_progress WHERE topic = '{users}'", 6)
        copies = f"SELECT copies FROM crossfade.collection WHERE namespace = '{w.name}.users'"
        before = await w.value(copies)
        # As if nothing had been read of what is now its only partition: only the others tell of the loss.
        first = f"topic = '{users}' AND partition = 0"
        await w.value(f"UPDATE crossfade.partition_progress SET next_offset = 0 WHERE {first}")
        await make_topic(services.kafka_bootstrap, users, 1)
        await w.start("run", "run")
        await w.until_value(copies, before + 1, seconds=120)
        await w.settled(240, streams=1 + 1 + others)
        await w.assert_nothing_lost()
        assert "a topic was made anew, perhaps" in (tmp_path / "run.log").read_text()
