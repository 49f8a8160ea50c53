"""A world of its own for an end-to-end test: fresh databases and topics, and the program as processes."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from motor.motor_asyncio import AsyncIOMotorClient

from examples.spaces import oracle
from examples.spaces.generate import Generator
from examples.spaces.ledger import Ledger
from examples.spaces.meanwhile import writing
from examples.spaces.writer import Writer
from schema import migrate
from tests.support.removal import remove
from tests.support.same import unequal
from tests.support.signals import send
from topics import Event, decode
from worker.embedded import Services
from worker.mapping import Mapping, load
from worker.settings import Settings

PARTITIONS = 2
PATIENCE = 180.0  # seconds; what takes one here may take a minute on a machine with much else to do
MAPPING = Path(__file__).parents[2] / "schema/spaces/mapping.yaml"


class World:
    """A fresh MongoDB database, PostgreSQL database and set of topics, and the processes between them.

    ``mapping`` is a mapping file's text; every NAME in it becomes the world's own.
    """

    def __init__(self, services: Services, directory: Path, mapping: str, mongo_uri: str) -> None:
        self.name = f"w{uuid4().hex[:10]}"
        self.services, self.directory = services, directory
        self.client = AsyncIOMotorClient(mongo_uri, uuidRepresentation="standard", tz_aware=True)
        self.mongo = self.client[self.name]
        self.kafka = services.kafka_bootstrap
        self.ledger = Ledger()
        self.code = Path(__file__).parents[2]
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        directory.mkdir(parents=True, exist_ok=True)
        self.mapping_file = directory / "mapping.yaml"
        self.mapping_file.write_text(mapping.replace("NAME", self.name))
        self.env = {
            **os.environ,
            **services.env(),
            "CROSSFADE_MONGO_URI": mongo_uri,
            "CROSSFADE_POSTGRES_DSN": services.dsn("crossfade_sync", self.name),
            "CROSSFADE_POSTGRES_READER_DSN": services.dsn("crossfade_reader", self.name),
            "CROSSFADE_POSTGRES_CONTROL_DSN": services.dsn("crossfade_control", self.name),
            "CROSSFADE_RUN_ROLES": "publish,apply",
            "CROSSFADE_POSTGRES_ADMIN_DSN": services.dsn("postgres", self.name),
            "CROSSFADE_MAPPING": str(self.mapping_file),
            "CROSSFADE_TOPIC_PREFIX": self.name,
            "CROSSFADE_APPLY_GROUP": self.name,
            "CROSSFADE_REVERSE_GROUP": f"{self.name}-reverse",
            "CROSSFADE_PUBLISHER": self.name,
            "CROSSFADE_TOPIC_PARTITIONS": str(PARTITIONS),
            "CROSSFADE_LOG_FORMAT": "json",
        }

    @property
    def mapping(self) -> Mapping:
        return load(self.mapping_file)

    def use_kafka(self, bootstrap: str) -> None:
        """Take another Kafka than that of the services, before anything is started."""
        self.kafka = self.env["CROSSFADE_KAFKA_BOOTSTRAP"] = bootstrap

    async def connect(self) -> asyncpg.Connection:
        return await asyncpg.connect(self.services.dsn("postgres", self.name))

    async def start(self, role: str, name: str, *arguments: str, **env: str) -> None:
        """Start a role, or a command with arguments, as a process with a log of its name."""
        with (self.directory / f"{name}.log").open("ab") as log:
            self.processes[name] = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "worker",
                role,
                *arguments,
                env=self.env | env,
                stderr=log,
                stdout=log,
                cwd=self.code,
            )

    async def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        send(process)
        await process.wait()

    async def stop(self, name: str) -> int:
        process = self.processes.pop(name)
        send(process, signal.SIGTERM)
        return await asyncio.wait_for(process.wait(), 20)

    async def ended(self, name: str, seconds: float = PATIENCE) -> int:
        """Wait until a process ends by itself; return its exit code."""
        return await asyncio.wait_for(self.processes.pop(name).wait(), seconds)

    async def published(self) -> None:
        """Wait until all that MongoDB has now is in Kafka for certain."""
        at = (await self.mongo.command("ping"))["operationTime"]
        reached = f"SELECT (token_time > {at.time << 32 | at.inc})::integer FROM crossfade.checkpoint"
        await self.until_value(reached, 1)

    async def settled(self, seconds: float = PATIENCE, *, streams: int | None = None) -> None:
        """Wait until all that MongoDB has now is in Kafka, all is copied, and all that Kafka holds applied.

        By clusterTimes and offsets, never by clocks, which tests step. ``streams``: partitions of all stream
        topics, where some were made by hand.
        """
        at = (await self.mongo.command("ping"))["operationTime"]
        connection = await self.connect()
        try:
            async with asyncio.timeout(seconds):
                while True:
                    await self._published_and_copied(connection, at.time << 32 | at.inc)
                    reached = await self._applied(connection, await self.ends(streams))
                    # Where more was applied than there is, a topic was deleted, which apply is yet to notice.
                    ends = await self.ends(streams)
                    if all(reached[place] <= ends[place] for place in reached) and await self._copied(
                        connection
                    ):
                        return
        except TimeoutError:
            pytest.fail(f"not settled in {seconds} s: {await self._state(connection)}\n{self._logs()}")
        finally:
            await connection.close()

    def _logs(self) -> str:
        """Return the ends of all logs."""
        return "".join(path.read_text()[-2000:] for path in self.directory.glob("*.log"))

    async def _state(self, connection: asyncpg.Connection) -> str:
        """Tell how far everybody is."""
        told: list[str] = []
        for query in (
            "SELECT token_time >> 32, saved_at FROM crossfade.checkpoint",
            "SELECT namespace, copy_state FROM crossfade.collection WHERE copy_state <> 'copied'",
            "SELECT state, count(*) FROM crossfade.dead_letter GROUP BY 1",
            "SELECT topic, partition, next_offset FROM crossfade.partition_progress ORDER BY 1, 2",
        ):
            told += [str(tuple(row)) for row in await connection.fetch(query)]
        with suppress(Exception):
            async with asyncio.timeout(10):
                told.append(f"ends {await self.ends()}")
        return ", ".join(told).replace(f"{self.name}.", "")

    async def _published_and_copied(self, connection: asyncpg.Connection, at: int) -> None:
        token = "SELECT coalesce(max(token_time) > $1, false) FROM crossfade.checkpoint"
        while not (await connection.fetchval(token, at) and await self._copied(connection)):  # noqa: ASYNC110
            await asyncio.sleep(0.1)

    async def _copied(self, connection: asyncpg.Connection) -> bool:
        query = "SELECT count(*) >= $1 AND bool_and(copy_state = 'copied') FROM crossfade.collection"
        return await connection.fetchval(query, len(self.mapping.collections))

    async def ends(self, streams: int | None = None) -> dict[tuple[str, int], int]:
        """Return the end of every partition that apply reads. A new broker may not list all."""
        ends: dict[TopicPartition, int] = {}
        copies = len(self.mapping.collections) * PARTITIONS
        while len(ends) < copies + (streams or copies):
            async with self._consumer(self._forward) as (consumer, partitions):
                ends = await consumer.end_offsets(partitions)
        return {(place.topic, place.partition): end for place, end in ends.items()}

    def _forward(self, topic: str) -> bool:
        return not topic.startswith(f"{self.name}.reverse.")

    async def _applied(
        self, connection: asyncpg.Connection, ends: dict[tuple[str, int], int]
    ) -> dict[tuple[str, int], int]:
        """Wait until everything before these ends is applied; return how far."""
        while True:
            rows = await connection.fetch(
                "SELECT topic, partition, next_offset FROM crossfade.partition_progress"
            )
            reached = {(row[0], row[1]): row[2] for row in rows if (row[0], row[1]) in ends}
            behind = any(reached.get(place, 0) < end for place, end in ends.items())
            parked = "SELECT EXISTS (SELECT FROM crossfade.dead_letter WHERE state = 'parked')"
            if not behind and not await connection.fetchval(parked):
                return reached
            await asyncio.sleep(0.1)

    @asynccontextmanager
    async def _consumer(
        self, topics: Callable[[str], bool] = lambda name: True
    ) -> AsyncIterator[tuple[AIOKafkaConsumer, list[TopicPartition]]]:
        consumer = AIOKafkaConsumer(bootstrap_servers=self.kafka)
        try:
            await consumer.start()
            names: list[str] = []
            while not names:  # a broker may not list them yet
                kafka = await consumer._client.fetch_all_metadata()
                names = [name for name in kafka.topics() if name.startswith(f"{self.name}.")]
            partitions = [
                TopicPartition(name, number)
                for name in names
                if topics(name)
                for number in sorted(kafka.partitions_for_topic(name))
            ]
            consumer.assign(partitions)
            yield consumer, partitions
        finally:
            await consumer.stop()

    async def load(self, documents: int, *, tenants: int = 2, seed: int = 3) -> None:
        """Fill MongoDB as the reference application would."""
        await Generator(seed).load(self.mongo, tenants=tenants, documents=documents)

    @asynccontextmanager
    async def writes(self, rate: float, seed: int = 5) -> AsyncIterator[Writer]:
        """Let the application write while the block runs; at its end every write's outcome is known."""
        writer = Writer(self.client, self.name, rate, seed, ledger=self.ledger)
        async with writing(writer):
            yield writer

    async def until(self, told: str, condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """Wait for a condition of this process."""
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - other processes make it true
                await asyncio.sleep(0.05)
        assert condition(), told

    async def until_async(
        self, told: str, condition: Callable[[], Awaitable[Any]], seconds: float = PATIENCE
    ) -> None:
        """Wait for a condition that is asked of a service."""
        async with asyncio.timeout(seconds):
            while not (found := await condition()):  # noqa: ASYNC110 - a service tells
                await asyncio.sleep(0.01)
        assert found, told

    async def value(self, query: str, *arguments: object) -> Any:
        """Return one value from PostgreSQL, as the superuser."""
        connection = await self.connect()
        try:
            return await connection.fetchval(query, *arguments)
        finally:
            await connection.close()

    async def spoil(self, statement: str, *arguments: object) -> None:
        """Change one row as the superuser, past triggers and foreign keys."""
        connection = await self.connect()
        try:
            await connection.execute("SET session_replication_role = replica")
            assert await connection.execute(statement, *arguments) == "UPDATE 1"
        finally:
            await connection.close()

    async def until_value(self, query: str, least: int, seconds: float = PATIENCE) -> None:
        """Wait until PostgreSQL answers a query with at least a number."""
        connection = await self.connect()
        try:
            async with asyncio.timeout(seconds):
                while (await connection.fetchval(query) or 0) < least:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        except TimeoutError:
            pytest.fail(f"not {least} in {seconds} s: {query}\n{self._logs()}")
        finally:
            await connection.close()

    async def execute(self, statement: str, *arguments: object) -> None:
        """Do a statement in PostgreSQL, as the superuser."""
        connection = await self.connect()
        try:
            await connection.execute(statement, *arguments)
        finally:
            await connection.close()

    async def compare(self) -> oracle.Comparison:
        """Compare every document with its rows, both ways."""
        connection = await self.connect()
        try:
            return await oracle.compare(self.mongo, connection)
        finally:
            await connection.close()

    async def unequal(self) -> list[tuple[str, Any, str]]:
        """Rebuild every document from its rows; return collection, id and fields of those that differ."""
        connection = await self.connect()
        try:
            return await unequal(self.client, connection, self.mapping)
        finally:
            await connection.close()

    async def assert_nothing_lost(self) -> None:
        """Acknowledged writes are in MongoDB, documents in PostgreSQL, records accounted for."""
        assert await self.ledger.compare(self.mongo) == []
        comparison = await self.compare()
        assert comparison.documents > 0
        assert comparison.equal, comparison.differences
        assert await self.unequal() == []
        outcomes = "applied + superseded + absent + echo + switched + parked + dead_lettered + control"
        for table in ("batch", "partition_progress"):  # docs/protocol.md A8
            assert await self.value(
                f"SELECT count(*) > 0 AND bool_and(records = {outcomes}) FROM crossfade.{table}"
            )
        assert await self.value("SELECT count(*) FROM crossfade.dead_letter WHERE state = 'dead'") == 0

    async def events(self, topics: Callable[[str], bool] = lambda name: True) -> list[Event]:
        """Return every event that Kafka holds of these topics, in order within each partition."""
        return [decode(record.value) for record in await self.records(topics)]

    async def send_again(self, topics: Callable[[str], bool] = lambda name: True, *, seed: int = 1) -> int:
        """Send every record of these topics once more, in random order; return how many."""
        records = await self.records(topics)
        random.Random(seed).shuffle(records)
        producer = AIOKafkaProducer(bootstrap_servers=self.kafka)
        try:
            await producer.start()
            for record in records:
                await producer.send(record.topic, record.value, key=record.key, partition=record.partition)
        finally:
            await producer.stop()  # sends what is left
        return len(records)

    async def records(self, topics: Callable[[str], bool] = lambda name: True) -> list[ConsumerRecord]:
        """Return every record that Kafka holds in these topics."""
        async with self._consumer(topics) as (consumer, partitions):
            await consumer.seek_to_beginning()
            left = sum((await consumer.end_offsets(partitions)).values())
            return [await consumer.getone() for _ in range(left)]


@asynccontextmanager
async def world(
    services: Services,
    directory: Path,
    mapping: str = "",
    target: str | Path | None = "spaces",
    *,
    mongo_uri: str | None = None,
) -> AsyncIterator[World]:
    """Make a world for the reference application, or for another mapping and its tables.

    ``mongo_uri``: another MongoDB than that of the services.
    """
    spaces = MAPPING.read_text().replace("database: spaces", "database: NAME")
    new = World(services, directory, mapping or spaces, mongo_uri or services.mongo_uri)
    admin = await asyncpg.connect(services.postgres_admin_dsn)
    await admin.execute(f'CREATE DATABASE "{new.name}"')
    await admin.close()
    connection = await new.connect()
    await migrate.apply(connection, "control")
    if target is not None:
        await migrate.apply(connection, target)
    await connection.close()
    try:
        yield new
    finally:
        for name in list(new.processes):
            await new.kill(name)
        await remove(services, new.client, new.name)


def settings(world: World, **other: Any) -> Settings:
    """Return the settings that its processes get."""
    names = {f"CROSSFADE_{name.upper()}": name for name in Settings.model_fields}
    return Settings(**{names[key]: value for key, value in world.env.items() if key in names} | other)


async def once(world: World, *command: str, within: float = PATIENCE, **env: str) -> tuple[int, str]:
    """Run a command that is to end by itself, ``within`` seconds; return its exit code and what it told."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "worker",
        *command,
        env=world.env | env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=world.code,
    )
    told = asyncio.create_task(process.communicate())
    done, _ = await asyncio.wait([told], timeout=within)
    if not done:
        process.kill()
    output = (await told)[0].decode()
    assert done, f"{' '.join(command)} did not end within {within:g} s:\n{output}"
    return process.returncode or 0, output
