"""What Kafka has lost before apply read it is noticed, and healed by a copy."""

from __future__ import annotations

import signal
from pathlib import Path

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from tests.support.hands import administering
from tests.support.offsets import ends
from tests.support.world import PARTITIONS, World, world
from worker.embedded import Services


async def test_records_that_retention_took_are_told_and_copied_again(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(400)
        await w.start("publish", "publish")
        await w.until_value("SELECT count(*) FROM crossfade.collection WHERE copy_state = 'copied'", 6)
        topic = f"{w.name}.{w.name}.pages.copy"
        admin = AIOKafkaAdminClient(bootstrap_servers=services.kafka_bootstrap)
        await admin.start()
        await admin.delete_records(
            {TopicPartition(topic, n): RecordsToDelete(before_offset=5) for n in range(PARTITIONS)}
        )
        # All of these: nothing that arrives later tells of the loss.
        all_gone = f"{w.name}.{w.name}.forms.copy"
        forms = {
            TopicPartition(*place): end for place, end in (await ends(w)).items() if place[0] == all_gone
        }
        await admin.delete_records(
            {place: RecordsToDelete(before_offset=end) for place, end in forms.items()}
        )
        await admin.close()
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
    async with world(services, tmp_path) as w:
        await w.load(400)
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.settled()
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


async def empty(w: World, topic: str) -> None:
    """Take every record of a topic, as retention does."""
    async with administering(w.kafka) as admin:
        all_ = {TopicPartition(topic, n): RecordsToDelete(before_offset=-1) for n in range(PARTITIONS)}
        await admin.delete_records(all_)


async def test_a_topic_that_was_deleted_with_unread_records_is_told_and_copied_again(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await w.load(400)
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.settled()
        assert await w.stop("apply") == 0
        await w.mongo["pages"].update_many({}, {"$set": {"title": "in a topic that goes"}})
        await w.mongo["pages"].delete_many({"version": {"$gt": 3}})
        await w.published()
        assert await w.stop("publish") == 0
        admin = AIOKafkaAdminClient(bootstrap_servers=services.kafka_bootstrap)
        await admin.start()
        await admin.delete_topics([f"{w.name}.{w.name}.pages"])
        await w.mongo["leads"].update_many({}, {"$set": {"status": "new"}})
        await w.start("publish", "publish again")  # makes the topic anew
        await w.start("apply", "apply again")
        await w.mongo["pages"].update_one({}, {"$set": {"title": "in the new topic"}})
        await w.until_value("SELECT max(copies) FROM crossfade.collection", 2)
        await admin.close()
        await w.settled()
        await w.assert_nothing_lost()
        assert "deleted and made anew" in (tmp_path / "apply again.log").read_text()
