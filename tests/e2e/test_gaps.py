"""What Kafka has lost before apply read it is noticed, and healed by a copy."""

from __future__ import annotations

import signal
from pathlib import Path

from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete

from tests.support.followed import followed
from tests.support.hands import administering, make_topic, remove_topic
from tests.support.world import PARTITIONS, World, world
from worker.embedded import Services


async def test_records_that_retention_took_are_told_and_copied_again(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(400)
        await w.start("publish", "publish")
        await w.until_value("SELECT count(*) FROM crossfade.collection WHERE copy_state = 'copied'", 6)
        await empty(w, f"{w.name}.{w.name}.pages.copy", 5)
        await empty(w, f"{w.name}.{w.name}.forms.copy")  # nothing that arrives later tells of this loss
        assert await w.stop("publish") == 0  # it would copy again before we have looked
        await w.start("apply", "apply")
        await w.until_value("SELECT count(*) FROM crossfade.collection WHERE copy_state = 'invalid'", 2)
        assert len((await w.compare()).differences) > 0
        assert "Kafka no longer has records" in (tmp_path / "apply.log").read_text()
        await w.start("publish", "publish again")
        await w.settled()
        await w.assert_nothing_lost()


async def test_a_copy_of_which_retention_left_nothing_is_told_and_copied_again(
    services: Services, tmp_path: Path
) -> None:
    """Nothing will ever arrive in these partitions that shows the gap."""
    async with world(services, tmp_path) as w:
        await w.load(400)
        await w.start("publish", "publish")
        await w.until_value("SELECT count(*) FROM crossfade.collection WHERE copy_state = 'copied'", 6)
        await empty(w, f"{w.name}.{w.name}.pages.copy")
        await w.start("apply", "apply")
        await w.until_value("SELECT max(copies) FROM crossfade.collection", 2)
        await w.settled()
        assert await w.value("SELECT sum(copies) FROM crossfade.collection") == 7
        await w.assert_nothing_lost()
        assert "Kafka no longer has records" in (tmp_path / "apply.log").read_text()


async def test_records_that_retention_took_from_a_slow_apply_are_told_and_copied_again(
    services: Services, tmp_path: Path
) -> None:
    async with followed(services, tmp_path, 400) as w:
        w.processes["apply"].send_signal(signal.SIGSTOP)
        await w.mongo["pages"].update_many({}, {"$set": {"note": "taken by retention"}})
        await w.mongo["pages"].delete_many({"version": {"$gt": 3}})
        await w.published()
        await empty(w, f"{w.name}.{w.name}.pages")
        w.processes["apply"].send_signal(signal.SIGCONT)
        await w.until_value("SELECT max(copies) FROM crossfade.collection", 2)
        await w.settled()
        await w.assert_nothing_lost()
        assert "Kafka no longer has records" in (tmp_path / "apply.log").read_text()


async def empty(w: World, topic: str, before: int = -1) -> None:
    """Take a topic's records before an offset, or all, as retention does."""
    places = [TopicPartition(topic, number) for number in range(PARTITIONS)]
    async with administering(w.kafka) as admin:
        await admin.delete_records({place: RecordsToDelete(before_offset=before) for place in places})


async def test_a_topic_that_was_deleted_with_unread_records_is_told_and_copied_again(
    services: Services, tmp_path: Path
) -> None:
    async with followed(services, tmp_path, 400) as w:
        assert await w.stop("apply") == 0
        await w.mongo["pages"].update_many({}, {"$set": {"title": "in a topic that goes"}})
        await w.mongo["pages"].delete_many({"version": {"$gt": 3}})
        await w.published()
        assert await w.stop("publish") == 0
        await remove_topic(w.kafka, f"{w.name}.{w.name}.pages")
        await w.mongo["leads"].update_many({}, {"$set": {"status": "new"}})
        applied = f"FROM crossfade.partition_progress WHERE topic = '{w.name}.{w.name}.pages'"
        read = await w.value(f"SELECT max(next_offset) {applied}")
        await w.start("publish", "publish again")  # makes the topic anew
        for number in range(5):  # once its offsets are beyond those of the old one, they tell nothing
            await w.mongo["pages"].update_many({}, {"$set": {"title": f"in the new topic {number}"}})
        await w.published()
        assert min(end for place, end in (await w.ends()).items() if place[0].endswith(".pages")) > read
        await w.start("apply", "apply again")
        await w.until_value("SELECT max(copies) FROM crossfade.collection", 2)
        await w.settled()
        await w.assert_nothing_lost()
        assert "a topic is gone" in (tmp_path / "publish again.log").read_text()


async def test_a_topic_that_was_made_anew_under_a_running_apply_is_read_from_its_begin(
    services: Services, tmp_path: Path
) -> None:
    """Apply never sees the topic missing: its next offset lies beyond the new topic's end."""
    async with world(services, tmp_path) as w:
        await w.load(400)
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        for number in range(5):
            await w.mongo["pages"].update_many({}, {"$set": {"note": f"in the old topic {number}"}})
        await w.settled()
        w.processes["apply"].send_signal(signal.SIGSTOP)
        await w.mongo["pages"].update_many({}, {"$set": {"note": "in a topic that goes"}})
        await w.mongo["pages"].delete_many({"version": {"$gt": 3}})
        await w.published()
        assert await w.stop("publish") == 0
        topic = f"{w.name}.{w.name}.pages"
        await remove_topic(w.kafka, topic)
        await make_topic(w.kafka, topic, PARTITIONS)
        w.processes["apply"].send_signal(signal.SIGCONT)
        await w.start("publish", "publish again")
        await w.mongo["pages"].update_one({}, {"$set": {"note": "in the new topic"}})
        await w.until_value("SELECT max(copies) FROM crossfade.collection", 2)
        await w.settled()
        await w.assert_nothing_lost()
        assert "deleted and made anew" in (tmp_path / "apply.log").read_text()
