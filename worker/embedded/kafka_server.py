"""Kafka from its jars: one process that is broker and controller."""

from __future__ import annotations

import base64
import shutil
import uuid
from pathlib import Path

import psutil

from worker.embedded import prerequisites, readiness
from worker.embedded.kafka_jars import jars
from worker.embedded.processes import Launch, run
from worker.embedded.server import Server
from worker.embedded.state import Report

CONTROLLER_PORT = "kafka_controller"
_LARGEST_MESSAGE = 24 * 1024 * 1024  # a MongoDB document may have 16 MB
LOGGING = Path(__file__).parent / "kafka" / "log4j2.yaml"

SETTINGS: dict[str, object] = {
    "process.roles": "broker,controller",
    "node.id": 1,
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "auto.create.topics.enable": "false",
    "message.max.bytes": _LARGEST_MESSAGE,
    "replica.fetch.max.bytes": _LARGEST_MESSAGE,
    "replica.fetch.response.max.bytes": _LARGEST_MESSAGE,
    "fetch.max.bytes": 64 * 1024 * 1024,
    "num.partitions": 4,
    "num.network.threads": 2,
    "num.io.threads": 4,
    "background.threads": 4,
    # One broker holds every replica there is.
    "default.replication.factor": 1,
    "offsets.topic.replication.factor": 1,
    "offsets.topic.num.partitions": 8,
    "transaction.state.log.replication.factor": 1,
    "transaction.state.log.min.isr": 1,
    "transaction.state.log.num.partitions": 4,
    "share.coordinator.state.topic.replication.factor": 1,
    "share.coordinator.state.topic.min.isr": 1,
    # Tests join and leave groups all the time.
    "group.initial.rebalance.delay.ms": 0,
    "group.min.session.timeout.ms": 1000,
    # A killed broker is registered again only after its last session has passed.
    "broker.heartbeat.interval.ms": 400,
    "broker.session.timeout.ms": 2000,
    "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
}

_FORMATTER = "kafka.tools.StorageTool"


class Kafka(Server):
    """A broker without authentication, on 127.0.0.1 only. Topics are never made by being named."""

    name = "kafka"
    port_names = ("kafka", CONTROLLER_PORT)

    def __init__(self, directory: Path, ports: dict[str, int]) -> None:
        super().__init__(directory, ports)
        self._properties = self.home / "server.properties"

    async def prepare(self, report: Report) -> None:
        """Fetch the jars where no clone has; format the storage beside, and rename it into place."""
        self._java = await prerequisites.java(report)
        self._jars = await jars(report)
        if self.discard_unproven():
            await self._format()
        self._write_properties(self._properties, self.data)

    async def _format(self) -> None:
        fresh = self.fresh()
        fresh.mkdir()
        properties = fresh / "server.properties"
        self._write_properties(properties, fresh / "data")
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        # With "=", since an id may begin with a dash.
        arguments = [f"--cluster-id={cluster}", f"--config={properties}"]
        flags = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx128m"]
        await run(
            [*self._run(flags, _FORMATTER), "format", *arguments],
            what="formatting Kafka's storage",
            directory=self.home,
        )
        (fresh / "data").rename(self.data)
        shutil.rmtree(fresh, ignore_errors=True)

    def how(self) -> Launch:
        """Return the command line; 512 MB of heap."""
        flags = [
            "-Xms256m",
            "-Xmx512m",
            "-XX:+UseG1GC",
            "-XX:MaxGCPauseMillis=20",
            "-Djava.awt.headless=true",
        ]
        return Launch([*self._run(flags, "kafka.Kafka"), str(self._properties)], self.home, self.log)

    def _run(self, flags: list[str], main: str) -> list[str]:
        return [self._java, *flags, f"-Dlog4j2.configurationFile={LOGGING}", "-cp", f"{self._jars}/*", main]

    def _write_properties(self, path: Path, data: Path) -> None:
        broker, controller = self.port, self.ports[CONTROLLER_PORT]
        settings = {
            **SETTINGS,
            "listeners": f"PLAINTEXT://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "log.dirs": data,
        }
        path.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))

    async def is_ready(self) -> bool:
        """Ask for its brokers."""
        return await readiness.kafka_is_ready(self.port)

    def is_it(self, process: psutil.Process) -> bool:
        """Know it by its properties' file; a run of the formatting tool, too."""
        command = process.cmdline()
        if "kafka.Kafka" in command:
            return command[-1] == str(self._properties)
        return _FORMATTER in command and command[-1].startswith(f"--config={self.home}/")
