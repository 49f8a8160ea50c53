"""A broker whose disk is full: nothing is lost, no token runs ahead, and space is all that it takes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.kafka_cluster import kafka_cluster
from tests.support.world import world
from worker.embedded import Services

MB = 1024 * 1024


async def mounting(*arguments: str) -> int:
    process = await asyncio.create_subprocess_exec(*arguments, stderr=asyncio.subprocess.DEVNULL)
    return await process.wait()


@asynccontextmanager
async def small_disk(place: Path, size: str) -> AsyncIterator[Path]:
    place.mkdir()  # noqa: ASYNC240
    if os.geteuid() != 0 or await mounting("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)):
        pytest.skip("a small disk needs root and the right to mount a tmpfs")
    try:
        yield place
    finally:
        await mounting("umount", "-l", str(place))


# aiokafka leaves a connection behind that a broker ends while it starts.
pytestmark = pytest.mark.filterwarnings("ignore:Unclosed AIOKafkaConnection:ResourceWarning")


@pytest.mark.timeout(600)
async def test_a_broker_without_space_loses_nothing_and_goes_on_with_more(
    services: Services, tmp_path: Path
) -> None:
    async with (
        small_disk(tmp_path / "disk", "160m") as disk,
        world(services, tmp_path) as w,
        kafka_cluster(tmp_path, 1, data=disk / "data") as kafka,
    ):
        node = kafka.nodes[0]
        w.use_kafka(kafka.bootstrap)
        await w.load(300)
        await w.start("run", "run")
        await w.settled(240)
        free = os.statvfs(disk)
        with (disk / "filler").open("wb") as filler:
            os.posix_fallocate(filler.fileno(), 0, free.f_bavail * free.f_frsize - 4 * MB)
        page = await w.mongo["pages"].find_one({})
        for _ in range(12):
            await w.mongo["pages"].insert_one({**page, "_id": uuid4(), "filler": os.urandom(MB // 2).hex()})
        written = (await w.mongo.command("ping"))["operationTime"]
        await w.until("the broker has ended", lambda: node.process is None, 120)
        log = tmp_path / "run.log"
        told = (
            "Kafka does not acknowledge",
            "Kafka did not take a batch",
        )  # waiting for room, or for an answer
        await w.until("publish tells", lambda: any(one in log.read_text() for one in told), 120)
        token = await w.value("SELECT token_time FROM crossfade.checkpoint")
        assert token < written.time << 32 | written.inc
        assert await mounting("mount", "-o", "remount,size=400m", str(disk)) == 0
        await kafka.start(node)
        await w.settled(240)
        await w.assert_nothing_lost()
