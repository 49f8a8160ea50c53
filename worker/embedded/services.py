"""The three services of one directory: up, down, and one by one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import psutil

from worker.embedded import processes
from worker.embedded.kafka_server import Kafka
from worker.embedded.mongod_server import DEFAULT_OPLOG_MB, REPLICA_SET, Mongod
from worker.embedded.postgres_server import (
    CONTROL_ROLE,
    DATABASE,
    READER_ROLE,
    SUPERUSER,
    SYNC_ROLE,
    Postgres,
    dsn,
)
from worker.embedded.server import Server
from worker.embedded.state import (
    SERVICE_NAMES,
    Ports,
    Report,
    ServiceName,
    exclusive,
    free_port,
    is_free,
    remember,
    remembered,
)
from worker.errors import ConfigurationError, ServiceUnavailable

__all__ = ["Ports", "ServiceName", "Services"]

_DEADLINE = 90.0  # seconds for one service to become ready
_POLL = 0.05


class Services:
    """mongod (a replica set of one), Kafka and PostgreSQL of one directory, on 127.0.0.1 only.

    They outlive the process that started them, until `down`. Data, logs and what is remembered lie in the
    directory. Anyone on this machine may connect: there are no passwords (PostgreSQL: trust authentication).
    """

    def __init__(self, directory: Path, report: Report | None, oplog_mb: int = DEFAULT_OPLOG_MB) -> None:
        """Use `up` or `running`."""
        self.directory = directory
        self._ports: dict[str, int] = remembered(directory / "ports.json")
        self._report = report or _silent
        servers = (
            Mongod(directory, self._ports, oplog_mb),
            Kafka(directory, self._ports),
            Postgres(directory, self._ports),
        )
        self._servers: dict[ServiceName, Server] = {server.name: server for server in servers}

    @classmethod
    async def up(
        cls,
        directory: Path,
        *,
        ports: Ports | None = None,
        report: Report | None = None,
        oplog_mb: int = DEFAULT_OPLOG_MB,
    ) -> Services:
        """Start what does not run yet and return when all three are ready.

        Free ports are chosen once and kept. ``oplog_mb`` counts when mongod's data is made.
        `ServiceUnavailable` says what is missing, or quotes the log of a service that died; what this call
        started is ended again.
        """
        directory = _absolute(directory)
        async with _lock(directory, report):
            services = cls(directory, report, oplog_mb)
            services._choose_ports(ports or Ports())
            await services._start_all()
        return services

    @classmethod
    async def down(cls, directory: Path, *, report: Report | None = None) -> None:
        """End all services of the directory, whoever started them, if any runs. Data is kept."""
        directory = _absolute(directory)
        if not directory.exists():  # it may have been removed under running services
            await _together(server.end_strays() for server in cls(directory, report)._servers.values())
            return
        async with _lock(directory, report):
            services = cls(directory, report)
            await _together(services.stop(name) for name in SERVICE_NAMES)

    @classmethod
    def running(cls, directory: Path) -> Services | None:
        """Return the directory's services when all three run, else None."""
        services = cls(_absolute(directory), None)
        servers = services._servers.values()
        return services if all(server.is_proven() and server.process() for server in servers) else None

    @property
    def mongo_uri(self) -> str:
        """MongoDB's connection string."""
        return f"mongodb://127.0.0.1:{self._servers['mongod'].port}/?replicaSet={REPLICA_SET}"

    @property
    def kafka_bootstrap(self) -> str:
        """Kafka's bootstrap server."""
        return f"127.0.0.1:{self._servers['kafka'].port}"

    @property
    def postgres_admin_dsn(self) -> str:
        """PostgreSQL as superuser."""
        return self.dsn(SUPERUSER)

    @property
    def postgres_dsn(self) -> str:
        """PostgreSQL as the sync role, which `crossfade schema apply` makes."""
        return self.dsn(SYNC_ROLE)

    def dsn(self, role: str, database: str = DATABASE) -> str:
        """Return PostgreSQL's connection string for any role."""
        return dsn(self._servers["postgres"].port, role, database)

    def env(self) -> dict[str, str]:
        """Return the settings that point Crossfade at these services."""
        return {
            "CROSSFADE_MONGO_URI": self.mongo_uri,
            "CROSSFADE_POSTGRES_DSN": self.postgres_dsn,
            "CROSSFADE_POSTGRES_READER_DSN": self.dsn(READER_ROLE),
            "CROSSFADE_POSTGRES_CONTROL_DSN": self.dsn(CONTROL_ROLE),
            "CROSSFADE_POSTGRES_ADMIN_DSN": self.postgres_admin_dsn,
            "CROSSFADE_KAFKA_BOOTSTRAP": self.kafka_bootstrap,
        }

    def log(self, name: ServiceName) -> Path:
        """Return the service's log file."""
        return self._servers[name].log

    def process(self, name: ServiceName) -> psutil.Process | None:
        """Return the service's process, or None when it does not run."""
        return self._servers[name].process()

    async def kill(self, name: ServiceName) -> None:
        """SIGKILL the service with its children, and return when they are gone. Its data stays as it was."""
        async with self._changing(name):
            await self._servers[name].kill()

    async def stop(self, name: ServiceName) -> None:
        """End the service in order, if it runs, and return when it is gone."""
        async with self._changing(name):
            if await self._servers[name].end():
                self._report(f"{name}: ended")

    async def start(self, name: ServiceName) -> None:
        """Start the service, if it does not run, with its port and data; return when it is ready."""
        async with self._changing(name):
            server = self._servers[name]
            if server.process():
                await self._wait(server)
                return
            try:
                await self._launch(server)
            except BaseException:
                await server.end()
                raise

    def _changing(self, name: ServiceName) -> AbstractAsyncContextManager[None]:
        """Each service has a lock of its own, so that one can be killed while another starts."""
        return exclusive(self._servers[name].home / "lock", self._report, name)

    def _choose_ports(self, wanted: Ports) -> None:
        """Fill the ports. A stranger may have taken a remembered one while the service was down."""
        asked, ports = wanted.asked(), self._ports
        for name, server in self._servers.items():
            running = server.process() is not None
            for port_name in server.port_names:
                port, want = ports.get(port_name), asked.get(port_name)
                if running and want not in (None, port):
                    raise ConfigurationError(
                        f"{name} of this directory runs on port {port}", remedy="end it first"
                    )
                if want is not None:
                    ports[port_name] = want
                elif port is None or not (running or is_free(port) or processes.strays(server.is_it)):
                    ports[port_name] = free_port(taken=set(ports.values()))
        remember(self.directory / "ports.json", ports)

    async def _start_all(self) -> None:
        """Start all at once; where one fails, end those that did not run before."""
        missing: list[ServiceName] = [name for name in SERVICE_NAMES if self.process(name) is None]
        try:
            await _together(self.start(name) for name in SERVICE_NAMES)
        except BaseException:
            await _together(self.stop(name) for name in missing)
            raise

    async def _launch(self, server: Server) -> None:
        began = time.monotonic()
        # An `up` that was killed between starting and recording a process left one that no file names.
        await server.end_strays()
        await server.prepare(self._report)
        for port in [self._ports[name] for name in server.port_names]:
            if not is_free(port):
                raise ServiceUnavailable(
                    f"{server.name}: port {port} is taken by another program", remedy="free it"
                )
        log_began = server.log_size()
        server.launch()
        await self._wait(server, log_began)
        self._report(f"{server.name}: ready on port {server.port} after {time.monotonic() - began:.1f} s")

    async def _wait(self, server: Server, log_began: int = 0) -> None:
        deadline = time.monotonic() + _DEADLINE
        while True:
            ready = await server.is_ready()
            problem = None
            if server.process() is None:  # then it was another program that answered, if any did
                problem = "ended while it started"
            elif not ready and time.monotonic() > deadline:
                problem = f"is not ready after {_DEADLINE:.0f} s"
            if problem:
                words = server.last_words(log_began)
                raise ServiceUnavailable(f"{server.name} {problem}; the end of {server.log}:\n{words}")
            if ready:
                break
            await asyncio.sleep(_POLL)
        server.prove()


def _lock(directory: Path, report: Report | None) -> AbstractAsyncContextManager[None]:
    return exclusive(directory / "lock", report or _silent, str(directory))


async def _together(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do it all at once; the first failure cancels the rest and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for task in work:
                group.create_task(task)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


def _absolute(directory: Path) -> Path:
    """Return the path as the servers' command lines show it."""
    return directory.resolve()


def _silent(_: str) -> None:
    pass
