"""Where the benchmark runs: embedded services, and the program and the writer as processes between them."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import asyncpg
import click
import orjson

from bench.changes import Live
from bench.usage import Reading
from bench.writer import Order, Written, written_from
from worker.embedded import Services
from worker.embedded.services import ServiceName
from worker.errors import CrossfadeError
from worker.mongo.client import Client
from worker.mongo.client import connect as connect_mongo
from worker.postgres.connect import connect
from worker.supervise import end

DATABASE = "spaces"
MAPPING = Path(__file__).parents[1] / "schema/spaces/mapping.yaml"
_SERVICES: tuple[ServiceName, ...] = ("mongod", "kafka", "postgres")
_COLLECTIONS = ("tenants", "users", "passwords", "pages", "forms", "leads")
_POLL = 0.1
_STOP_WITHIN = 20.0
_LAST_WORDS = 2000


class BenchFailed(CrossfadeError):
    """The benchmark lost something, or a stage did not end in time."""


def say(line: str) -> None:
    """Tell a person what goes on; stdout is for the figures."""
    click.echo(line, err=True)


class Site:
    """Services, databases and processes of one run."""

    def __init__(
        self,
        services: Services,
        directory: Path,
        mongo: Client,
        postgres: asyncpg.Connection,
        seed: int,
        patience: float,
    ) -> None:
        self.services, self._directory = services, directory
        self.pages = mongo[DATABASE]["pages"]
        self.postgres = postgres
        self.seed, self.patience = seed, patience
        self.live = Live(0, 0)
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._env = {
            **os.environ,
            **services.env(),
            "CROSSFADE_MAPPING": str(MAPPING),
            "CROSSFADE_LOG_FORMAT": "json",
        }

    async def start(self, role: str) -> None:
        """Start publish or apply."""
        process = self._processes[role] = await self._spawn(role)
        say(f"  {role} is process {process.pid}")

    async def stop(self, *roles: str) -> None:
        """End processes in order."""
        for process in [self._processes.pop(role) for role in roles if role in self._processes]:
            await end(process, _STOP_WITHIN)

    async def stop_all(self) -> None:
        """End every process of the program."""
        await self.stop(*self._processes)

    async def command(self, *arguments: str) -> None:
        """Run a command of Crossfade to its end."""
        process = await self._spawn(*arguments)
        if await process.wait():
            raise BenchFailed(f"crossfade {' '.join(arguments)} failed: {self._last_words(arguments[0])}")

    async def write(self, order: Order, within: float) -> Written:
        """Let a writer process carry out an order."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.writer", orjson.dumps(asdict(order)).decode()),
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[1],
        )
        try:
            async with asyncio.timeout(within):
                output, _ = await process.communicate()
        except TimeoutError:
            raise BenchFailed(f"the writer did not end within {within:.0f} s") from None
        finally:
            await end(process, _STOP_WITHIN)
        if process.returncode:
            raise BenchFailed(f"the writer failed with exit code {process.returncode}")
        return written_from(output)

    def order(self, **fields: Any) -> Order:
        """Return an order to write into this site's pages."""
        return Order(uri=self.services.mongo_uri, database=DATABASE, seed=self.seed, **fields)

    def read_usage(self) -> Reading:
        """Return CPU and memory of the services and of the program's processes."""
        pids = {role: process.pid for role, process in self._processes.items()}
        for name in _SERVICES:
            if (process := self.services.process(name)) is not None:
                pids[name] = process.pid
        return Reading.of(pids)

    async def until(self, what: str, reached: Callable[[], Awaitable[bool]], within: float) -> None:
        """Wait; `BenchFailed` when a process ends by itself meanwhile, or when it takes too long."""
        deadline = time.monotonic() + within
        while not await reached():
            for role, process in self._processes.items():
                if process.returncode is not None:
                    raise BenchFailed(f"{role} ended while {what}: {self._last_words(role)}")
            if time.monotonic() > deadline:
                raise BenchFailed(f"{what} did not end within {within:.0f} s")
            await asyncio.sleep(_POLL)

    async def _spawn(self, *arguments: str) -> asyncio.subprocess.Process:
        with self._log(arguments[0]).open("ab") as log:
            return await asyncio.create_subprocess_exec(
                sys.executable, "-m", "worker", *arguments, env=self._env, stdout=log, stderr=log
            )

    def _log(self, role: str) -> Path:
        return self._directory / f"{role}.log"

    def _last_words(self, role: str) -> str:
        return self._log(role).read_text(errors="replace")[-_LAST_WORDS:]


@asynccontextmanager
async def site(seed: int, patience: float) -> AsyncIterator[Site]:
    """Make a site with an empty database and the target's schema; afterwards nothing of it is left."""
    directory = Path(tempfile.mkdtemp(prefix="crossfade-bench-"))
    try:
        services = await Services.up(directory / "services", report=say)
        await _keep_commit_times(services)
        mongo = await connect_mongo(services.mongo_uri, "bench")
        for name in _COLLECTIONS:
            await mongo[DATABASE].create_collection(name)
        postgres = await connect(services.postgres_admin_dsn, "bench")
        new = Site(services, directory, mongo, postgres, seed, patience)
        try:
            await new.command("schema", "apply", "--target", "spaces")
            yield new
        finally:
            await new.stop_all()
            await postgres.close()
            mongo.close()
    finally:
        await Services.down(directory / "services")
        shutil.rmtree(directory, ignore_errors=True)


async def _keep_commit_times(services: Services) -> None:
    """Let PostgreSQL remember when each transaction committed: it costs 12 bytes of WAL a transaction."""
    admin = await connect(services.postgres_admin_dsn, "bench")
    await admin.execute("ALTER SYSTEM SET track_commit_timestamp = on")
    await admin.close()
    await services.stop("postgres")
    await services.start("postgres")
