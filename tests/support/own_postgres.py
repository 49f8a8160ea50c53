"""A PostgreSQL of a test's own, beside the MongoDB and the Kafka that all tests share."""

from __future__ import annotations

import asyncio
import copy
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from worker.embedded import Services
from worker.embedded.postgres_server import Postgres
from worker.embedded.state import free_port


@asynccontextmanager
async def own_postgres(services: Services, directory: Path) -> AsyncIterator[Services]:
    """Start it; give services in which it takes the shared one's place."""
    ports = {"postgres": free_port(set())}
    server = Postgres(directory, ports)
    own = copy.copy(services)
    own._ports = {**services._ports, **ports}
    own._servers = {**services._servers, "postgres": server}
    server.home.mkdir(parents=True)
    await own.start("postgres")
    try:
        yield own
    finally:
        await own.stop("postgres")


class Backup:
    """The data directory of a PostgreSQL, as it was when it was copied."""

    def __init__(self, services: Services) -> None:
        self._services, self._data = services, services._servers["postgres"].data
        self._copy = self._data.with_name("backup")

    async def take(self) -> None:
        await self._services.stop("postgres")
        shutil.rmtree(self._copy, ignore_errors=True)
        await asyncio.to_thread(_copy, self._data, self._copy)
        await self._services.start("postgres")

    async def restore(self) -> None:
        await self._services.stop("postgres")
        await asyncio.to_thread(shutil.rmtree, self._data)
        await asyncio.to_thread(_copy, self._copy, self._data)
        await self._services.start("postgres")


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, copy_function=_with_owner)
    for folder in [source, *(path for path in source.rglob("*") if path.is_dir())]:
        _own(folder, target / folder.relative_to(source))


def _with_owner(source: str, target: str) -> None:
    shutil.copy2(source, target)
    _own(Path(source), Path(target))


def _own(source: Path, target: Path) -> None:
    stat = source.stat()
    shutil.chown(target, stat.st_uid, stat.st_gid)
