"""The commands that look: topics and status, beside a migration that runs."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from examples.spaces.generate import Generator
from tests.support.world import World, world
from worker.broker.access import Access
from worker.broker.admin import existing_topics
from worker.embedded import Services

NOWHERE = "127.0.0.1:9"


async def start(w: World, *arguments: str, **env: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "worker",
        *arguments,
        env=w.env | env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def command(w: World, *arguments: str, **env: str) -> tuple[int, str, str]:
    process = await start(w, *arguments, **env)
    out, err = await asyncio.wait_for(process.communicate(), 180)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def json_of(w: World, *arguments: str, **env: str) -> Any:
    code, out, err = await command(w, *arguments, "--json", **env)
    assert code == 0, err
    return json.loads(out)


async def lines_of(w: World, *arguments: str) -> list[dict[str, Any]]:
    code, out, err = await command(w, "topics", "print", *arguments, "--json")
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


async def refused(w: World, *arguments: str, **env: str) -> str:
    """Return the one line of a command that a person must help."""
    code, out, err = await command(w, *arguments, **env)
    assert code == 2, err
    assert out == "" and "Traceback" not in err
    [line] = err.splitlines()
    return line


async def test_topics_are_created_once_and_then_exist(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path) as w:
        made = await json_of(w, "topics", "create")
        assert {one["state"] for one in made} == {"created"} and len(made) == 18
        existing = await existing_topics(Access(services.kafka_bootstrap))
        assert all(existing[one["topic"]] == one["partitions"] == 2 for one in made)
        again = await json_of(w, "topics", "create")
        assert [one | {"state": "created"} for one in again] == made
        assert {one["state"] for one in again} == {"exists"}
        code, out, _ = await command(w, "topics", "create")
        assert code == 0
        assert f"{w.name}.{w.name}.pages" in out and "exists" in out


async def test_a_topic_that_exists_otherwise_is_named_with_what_to_do(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        pages = f"{w.name}.{w.name}.pages"
        admin = AIOKafkaAdminClient(bootstrap_servers=services.kafka_bootstrap)
        await admin.start()
        await admin.create_topics(
            [
                NewTopic(
                    pages, 5, 1, topic_configs={"max.message.bytes": "1048588", "cleanup.policy": "compact"}
                )
            ]
        )
        await admin.close()
        code, out, err = await command(w, "topics", "create", "--json")
        assert code == 2 and "Traceback" not in err
        advised, clock, line = err.splitlines()
        assert f"topic {pages} has 5 partitions, not 2" in line and "CROSSFADE_TOPIC_PARTITIONS=5" in line
        assert "is compacted" in line and "cleanup.policy=delete" in line
        assert f"topic {pages} takes records of 1048588 bytes" in advised
        assert "max.message.bytes=20971520" in advised
        told = {one["topic"]: one for one in json.loads(out)}
        assert len(told[pages]["misfits"]) == 2
        assert "message.timestamp.type=LogAppendTime" in clock
        assert told[pages]["advice"] == [advised, clock]
        assert all(one["misfits"] == one["advice"] == [] for name, one in told.items() if name != pages)


async def test_what_lies_in_a_topic_is_printed_and_documents_only_when_asked(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await Generator(3).load(w.mongo, tenants=2, documents=300)
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.settled()
        page = await w.mongo["pages"].find_one_and_update({}, {"$set": {"title": "s3cret title"}})
        await w.mongo["pages"].delete_one({"_id": page["_id"]})
        await w.settled()
        stream, copy = f"{w.name}.{w.name}.pages", f"{w.name}.{w.name}.pages.copy"

        copied = await lines_of(w, copy, "--from-beginning")
        assert (
            len({json.dumps(one["id"]) for one in copied}) == await w.mongo["pages"].count_documents({}) + 1
        )
        assert {(one["operation"], one["source"], one["version"]["order"]) for one in copied} == {
            ("upsert", "copy", 2**31 - 1)
        }
        assert not any("document" in one for one in copied)
        assert len(await lines_of(w, copy, "--from-beginning", "--limit", "7")) == 7

        changes = [one for one in await lines_of(w, stream, "--from-beginning") if one["collection"]]
        assert [one["operation"] for one in changes] in (["upsert", "delete"], ["delete"])
        newest = await lines_of(w, stream, "--limit", "3")
        assert len(newest) == 3 and {one["operation"] for one in newest} == {"heartbeat"}
        with_documents = await lines_of(w, copy, "--from-beginning", "--documents")
        assert all(one["document"]["_id"] == one["id"] for one in with_documents)

        code, out, _ = await command(w, "topics", "print", copy, "--from-beginning")
        assert code == 0 and len(out.splitlines()) == len(copied)
        titles = [one["document"]["title"] for one in with_documents]
        assert not any(isinstance(title, str) and len(title) > 8 and title in out for title in titles)


async def test_what_is_no_event_is_printed_as_such_and_following_ends_with_exit_0(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        await json_of(w, "topics", "create")
        topic = f"{w.name}.{w.name}.pages"
        following = await start(w, "topics", "print", topic, "--follow")
        assert following.stdout is not None
        producer = AIOKafkaProducer(bootstrap_servers=services.kafka_bootstrap)
        await producer.start()
        await producer.send_and_wait(topic, b"s3cret garbage", partition=1)
        line = (await asyncio.wait_for(following.stdout.readline(), 20)).decode()
        await producer.send_and_wait(topic, None, key=b"key", partition=1)
        empty = (await asyncio.wait_for(following.stdout.readline(), 20)).decode()
        await producer.stop()
        following.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(following.communicate(), 20)
        assert following.returncode == 0 and err == b""
        assert line.startswith("1:0 ") and "undecodable, 14 bytes" in line and "s3cret" not in line
        assert empty.startswith("1:1 ") and "undecodable, 0 bytes" in empty


async def test_a_topic_that_is_not_there_is_not_made_by_looking(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path) as w:
        await json_of(w, "topics", "create")
        line = await refused(w, "topics", "print", f"{w.name}.pages")
        assert f"no topic {w.name}.pages: did you mean {w.name}.{w.name}.pages?" in line
        assert f"{w.name}.pages" not in await existing_topics(Access(services.kafka_bootstrap))


async def test_status_of_a_copy_that_stopped_half_way_and_of_one_that_is_done(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        fresh = await json_of(w, "status")
        assert fresh["collections"] == fresh["publishers"] == []
        assert fresh["apply"]["lag_seconds"] is None

        await Generator(3).load(w.mongo, tenants=2, documents=1000)
        killed = {"CROSSFADE_COPY_CHUNK": "10", "CROSSFADE_FAILPOINTS": "copy.after_chunk=exit:8"}
        code, _, _ = await command(w, "publish", **killed)
        assert code == 86
        half = await json_of(w, "status")
        [copying] = [one for one in half["collections"] if one["state"] == "copying"]
        assert 0 < copying["copied"] < copying["estimated"]
        assert copying["rate_per_second"] > 0 and copying["eta_seconds"] >= 0
        assert copying["arrived"] == 0
        code, out, _ = await command(w, "status")
        assert code == 0 and "copying" in out and "publish  " in out

        page = await w.mongo["pages"].find_one_and_update({}, {"$set": {"title": {"no": "text"}}})
        assert page is not None
        await w.start("publish", "publish")
        await w.start("apply", "apply")
        await w.settled()
        done = await json_of(w, "status")
        assert {one["state"] for one in done["collections"]} == {"copied"}
        for one in done["collections"]:
            assert one["arrived"] >= one["copied"] == one["estimated"] and one["finished_at"]
        apply, [publisher] = done["apply"], done["publishers"]
        assert apply["heartbeat_partitions"] == 12 and apply["lag_seconds"] < 5
        assert apply["records"] == sum(apply["outcomes"].values())
        assert done["dead_letters"]["dead"] >= 1 and done["dead_letters"]["parked"] == 0
        assert done["tenants"] == {"mongo": 2}
        assert publisher["publisher"] == w.name and publisher["token_age_seconds"] < 10

        await w.kill("publish")
        await asyncio.sleep(3)
        assert (await json_of(w, "status"))["apply"]["lag_seconds"] > 2.5


async def test_status_can_be_watched(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path) as w:
        watching = await start(w, "status", "--watch", "--json")
        assert watching.stdout is not None
        seen = [json.loads(await asyncio.wait_for(watching.stdout.readline(), 20)) for _ in range(2)]
        assert seen[0]["at"] < seen[1]["at"]
        watching.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(watching.communicate(), 20)
        assert watching.returncode == 0 and err == b""


@pytest.mark.parametrize(
    ("arguments", "env", "told"),
    [
        (("status",), {"CROSSFADE_POSTGRES_DSN": f"postgresql://x:s3cret@{NOWHERE}/x"}, "PostgreSQL"),
        (("topics", "create"), {"CROSSFADE_KAFKA_BOOTSTRAP": NOWHERE}, "Kafka"),
        (("topics", "print", "any"), {"CROSSFADE_KAFKA_BOOTSTRAP": NOWHERE}, "Kafka"),
        (("topics", "create"), {"CROSSFADE_MAPPING": "nowhere.yaml"}, "mapping"),
    ],
)
async def test_what_cannot_be_reached_is_one_clear_line_and_exit_2(
    services: Services, tmp_path: Path, arguments: tuple[str, ...], env: dict[str, str], told: str
) -> None:
    async with world(services, tmp_path) as w:
        line = await refused(w, *arguments, **env)
        assert told in line and "s3cret" not in line


async def test_a_database_without_our_schema_is_told_with_what_to_run(
    services: Services, tmp_path: Path
) -> None:
    async with world(services, tmp_path) as w:
        line = await refused(w, "status", CROSSFADE_POSTGRES_DSN=services.dsn("postgres", "template1"))
        assert "crossfade schema apply" in line
        line = await refused(w, "status", CROSSFADE_POSTGRES_DSN=services.dsn("application_role", w.name))
        assert "crossfade_sync or crossfade_reader" in line
