"""Kafka clusters of a test's own: several brokers, or one that is set up in its own way."""

from __future__ import annotations

import asyncio
import base64
import signal
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from worker.embedded import prerequisites, processes
from worker.embedded.kafka_jars import jars
from worker.embedded.kafka_server import LOGGING, SETTINGS
from worker.embedded.processes import Launch
from worker.embedded.readiness import kafka_is_ready
from worker.embedded.state import Recorded, free_port

_READY = 120.0  # seconds: the machine may be busy
_FLAGS = ("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true")


# Settings of a listener that takes unsigned tokens.
TOKENS: Mapping[str, object] = {
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,TOKENS:SASL_PLAINTEXT",
    "listener.name.tokens.sasl.enabled.mechanisms": "OAUTHBEARER",
    "listener.name.tokens.oauthbearer.sasl.jaas.config": "org.apache.kafka.common.security.oauthbearer"
    '.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";',
}


def _report(_: str) -> None:
    pass


class Node:
    """One process that is broker and controller."""

    def __init__(self, number: int, home: Path, data: Path, ports: tuple[int, int, int]) -> None:
        self.number, self.home, self.data = number, home, data
        self.port, self.controller, self.token_port = ports
        self.properties = home / "server.properties"
        self.log = home / "kafka.log"
        self._recorded: Recorded | None = None

    @property
    def process(self) -> psutil.Process | None:
        return processes.find(self._recorded, self.is_it)

    def is_it(self, process: psutil.Process) -> bool:
        return process.cmdline()[-1:] == [str(self.properties)]

    def prepare(self, cluster: str, settings: Mapping[str, object]) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        self.data.mkdir(parents=True, exist_ok=True)
        # What the formatting tool would write; the cluster's features are then the newest.
        directory = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        meta = {"version": 1, "node.id": self.number, "cluster.id": cluster, "directory.id": directory}
        _write(self.data / "meta.properties", meta)
        _write(self.properties, settings)

    def launch(self, java: str, path: Path) -> None:
        logging = f"-Dlog4j2.configurationFile={LOGGING}"
        command = [java, *_FLAGS, logging, "-cp", f"{path}/*", "kafka.Kafka", str(self.properties)]
        self._recorded = processes.launch(Launch(command, self.home, self.log))

    async def kill(self) -> None:
        """SIGKILL."""
        if process := self.process:
            await processes.kill_family(process)

    async def stop(self) -> None:
        """End it in order: its partitions get other leaders first."""
        if process := self.process:
            await processes.end(process, first=signal.SIGTERM, bound=60)


class Cluster:
    """Brokers of one test, on this machine. ``settings`` go over those of the embedded one."""

    def __init__(
        self, directory: Path, nodes: int, settings: Mapping[str, object], data: Path | None
    ) -> None:
        self.id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        self._settings = settings
        taken: set[int] = set()
        self.nodes: list[Node] = []
        for number in range(1, nodes + 1):
            ports: list[int] = []
            while len(ports) < 3:
                ports.append(free_port(taken | {*ports}))
            taken |= {*ports}
            home = directory / f"kafka-{number}"
            self.nodes.append(Node(number, home, data or home / "data", (ports[0], ports[1], ports[2])))

    @property
    def bootstrap(self) -> str:
        return ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    async def prepare(self) -> None:
        self._java, self._jars = await prerequisites.java(_report), await jars(_report)
        voters = ",".join(f"{node.number}@127.0.0.1:{node.controller}" for node in self.nodes)
        for node in self.nodes:
            listeners = f"PLAINTEXT://127.0.0.1:{node.port},CONTROLLER://127.0.0.1:{node.controller}"
            if TOKENS.items() <= self._settings.items():
                listeners += f",TOKENS://127.0.0.1:{node.token_port}"
            own: dict[str, object] = {
                **SETTINGS,
                "node.id": node.number,
                "listeners": listeners,
                "advertised.listeners": listeners,
                "controller.quorum.voters": voters,
                "log.dirs": node.data,
            }
            node.prepare(self.id, own | dict(self._settings))

    async def start(self, *nodes: Node) -> None:
        """Start nodes, all of them where none is named; return when the whole cluster is there."""
        for node in nodes or self.nodes:
            node.launch(self._java, self._jars)
        async with asyncio.timeout(_READY):
            while not await self._ready():  # noqa: ASYNC110
                await asyncio.sleep(0.5)

    async def _ready(self) -> bool:
        for node in self.nodes:
            if node.process is not None and not await kafka_is_ready(node.port):
                return False
        try:
            async with self.administering() as admin:
                cluster = await admin.describe_cluster()
            return len(cluster["brokers"]) == sum(node.process is not None for node in self.nodes)
        except (KafkaError, OSError, TimeoutError):
            return False

    @asynccontextmanager
    async def administering(self) -> AsyncIterator[AIOKafkaAdminClient]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap, request_timeout_ms=5_000)
        try:
            await admin.start()
            yield admin
        finally:
            await admin.close()

    async def leader(self, topic: str, partition: int = 0) -> Node:
        """Return the broker that leads a partition."""
        there = await self._partition(topic, partition)
        return next(node for node in self.nodes if node.number == there["leader"])

    async def in_sync(self, topic: str, replicas: int, partition: int = 0) -> None:
        """Wait until so many replicas of a partition are in sync."""
        async with asyncio.timeout(_READY):
            while True:
                try:
                    if len((await self._partition(topic, partition))["isr"]) == replicas:
                        return
                except (KafkaError, OSError, TimeoutError):
                    pass
                await asyncio.sleep(0.2)

    async def _partition(self, topic: str, partition: int) -> dict[str, Any]:
        async with self.administering() as admin:
            (told,) = await admin.describe_topics([topic])
        return next(one for one in told["partitions"] if one["partition"] == partition)


@asynccontextmanager
async def kafka_cluster(
    directory: Path, nodes: int, settings: Mapping[str, object] | None = None, data: Path | None = None
) -> AsyncIterator[Cluster]:
    """Run a cluster; ``data``: where the only node of one keeps its logs."""
    replicas = min(nodes, 3)
    several: dict[str, object] = {
        "default.replication.factor": replicas,
        "min.insync.replicas": max(1, replicas - 1),
        "offsets.topic.replication.factor": replicas,
        "controller.quorum.election.timeout.ms": 1000,
        "controller.quorum.fetch.timeout.ms": 2000,
        "leader.imbalance.check.interval.seconds": 2,
    }
    new = Cluster(directory, nodes, several | dict(settings or {}), data)
    await new.prepare()
    try:
        await new.start()
        yield new
    finally:
        for node in new.nodes:
            await node.kill()


def _write(path: Path, settings: Mapping[str, object]) -> None:
    path.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
