"""Errors that PostgreSQL raises while apply writes, each provoked: the batch is tried again until it fits."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import asyncpg
import pytest

from tests.support.letters import STANDING, log, running
from tests.support.own_postgres import own_postgres
from tests.support.world import World, world
from worker.embedded import Services
from worker.mapping import row_id

_OURS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'crossfade_sync'"


@asynccontextmanager
async def _admin(w: World) -> AsyncIterator[asyncpg.Connection]:
    connection = await w.connect()
    try:
        yield connection
    finally:
        await connection.close()


async def _told(w: World, code: str, count: int = 1, name: str = "apply") -> None:
    await w.until(f"{name} told {code}", lambda: log(w, name).count(code) >= count)


async def _equal(w: World) -> None:
    await w.settled()
    assert (await w.compare()).differences == []
    assert await w.value(STANDING) == 0


async def _deadlock(w: World) -> None:
    page = await w.mongo["pages"].find_one()
    async with _admin(w) as other:
        await other.execute("SET deadlock_timeout = '1min'")  # so that ours is the one that is chosen
        async with other.transaction():
            await other.execute("SELECT FROM pages WHERE id = $1 FOR UPDATE", row_id(page["_id"]))
            await w.mongo["pages"].update_one({"_id": page["_id"]}, {"$set": {"title": "deadlock"}})
            await w.until_value(
                "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) "
                "WHERE NOT l.granted AND a.application_name = 'crossfade apply'",
                1,
            )
            await other.execute(
                "SELECT FROM crossfade.document WHERE row_id = $1 FOR UPDATE", row_id(page["_id"])
            )
    await _told(w, "40P01")
    await _equal(w)


async def _serialization(w: World) -> None:
    page = await w.mongo["pages"].find_one()
    async with _admin(w) as other:
        await other.execute(
            f'ALTER ROLE crossfade_sync IN DATABASE "{w.name}" '
            "SET default_transaction_isolation = 'repeatable read'"
        )
        await other.execute(_OURS)
        await w.settled()
        async with other.transaction():
            await other.execute(
                "UPDATE crossfade.document SET batch_id = batch_id WHERE row_id = $1", row_id(page["_id"])
            )
            await w.mongo["pages"].update_one({"_id": page["_id"]}, {"$set": {"title": "serialization"}})
            await w.until_value(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                "AND application_name = 'crossfade apply'",
                1,
            )
        await _told(w, "40001")
        await _equal(w)
        await other.execute(f'ALTER ROLE crossfade_sync IN DATABASE "{w.name}" RESET ALL')
        await other.execute(_OURS)


async def _lock_timeout(w: World) -> None:
    async with _admin(w) as other, other.transaction():
        await other.execute("LOCK TABLE pages IN ACCESS EXCLUSIVE MODE")
        await w.mongo["pages"].update_many({}, {"$set": {"title": "locked"}})
        await _told(w, "55P03")
    await _equal(w)


async def _statement_timeout(w: World) -> None:
    """The role's own limit is not the batch's; a statement cancelled by a person is tried again."""
    async with _admin(w) as other:
        await other.execute(
            f"ALTER ROLE crossfade_sync IN DATABASE \"{w.name}\" SET statement_timeout = '700ms'"
        )
        await other.execute(_OURS)
        await w.settled()
        before = log(w, "apply").count("57014")
        async with other.transaction():
            await other.execute("LOCK TABLE pages IN ACCESS EXCLUSIVE MODE")
            await w.mongo["pages"].update_many({}, {"$set": {"title": "slow"}})
            waits = (
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                "AND application_name = 'crossfade apply' AND query_start < now() - interval '1.5 s'"
            )
            await w.until_value(waits, 1)
            assert log(w, "apply").count("57014") == before
            await other.execute(
                "SELECT pg_cancel_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'crossfade apply'"
            )
            await _told(w, "57014", before + 1)
        await _equal(w)
        await other.execute(f'ALTER ROLE crossfade_sync IN DATABASE "{w.name}" RESET ALL')


async def _no_connections(w: World) -> None:
    async with _admin(w) as other:
        await other.execute(f'ALTER DATABASE "{w.name}" CONNECTION LIMIT 0')  # superusers may still come
        await other.execute(_OURS)
        await w.mongo["pages"].update_many({}, {"$set": {"title": "full house"}})
        await _told(w, "TooManyConnections", 2)
        await other.execute(f'ALTER DATABASE "{w.name}" CONNECTION LIMIT -1')
    await _equal(w)


async def _read_only(w: World) -> None:
    """As of a server that has become a standby: another connection may find the primary."""
    async with _admin(w) as other:
        await other.execute(f'ALTER DATABASE "{w.name}" SET default_transaction_read_only = on')
        await other.execute(_OURS)
        await w.mongo["pages"].update_many({}, {"$set": {"title": "read-only"}})
        await _told(w, "25006")
        await _told(w, "25006", name="publish")
        await other.execute("SET default_transaction_read_only = off")
        await other.execute(f'ALTER DATABASE "{w.name}" RESET default_transaction_read_only')
    await _equal(w)


async def _altered_under_a_plan(w: World) -> None:
    async with _admin(w) as other:
        await other.execute("ALTER TABLE crossfade.document ALTER COLUMN version_order TYPE bigint")
        await w.mongo["pages"].update_many({}, {"$set": {"title": "another plan"}})
        await _told(w, "InvalidCachedStatement")
    await _equal(w)


async def test_each_error_passes_and_every_event_arrives_once(services: Services, tmp_path: Path) -> None:
    async with world(services, tmp_path) as w:
        await w.load(300)
        await running(w)
        pid = w.processes["apply"].pid
        for provoke in (
            _deadlock,
            _serialization,
            _lock_timeout,
            _statement_timeout,
            _no_connections,
            _read_only,
            _altered_under_a_plan,
        ):
            await provoke(w)
        async with w.writes(80) as writer:
            await w.until("writes", lambda: writer.counters.changes > 100)
        await w.settled()
        await w.assert_nothing_lost()
        for role in ("apply", "publish"):
            assert "Traceback" not in log(w, role)
            assert w.processes[role].returncode is None  # nobody had to start it again
        assert w.processes["apply"].pid == pid
        assert await w.stop("apply") == 0


@contextmanager
def _small_disk(owner: Path, megabytes: int) -> Iterator[Path]:
    """Mount a file system in memory that belongs to the owner of a folder."""
    place = Path(tempfile.mkdtemp(prefix="crossfade-disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        place.rmdir()
        pytest.skip("a small disk needs root and the right to mount")
    try:
        place.chmod(0o755)
        shutil.chown(place, owner.stat().st_uid, owner.stat().st_gid)
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
        place.rmdir()


async def test_a_full_disk_stops_nothing_for_good(services: Services, tmp_path: Path) -> None:
    async with own_postgres(services, tmp_path / "own") as own:
        data = own._servers["postgres"].data
        with _small_disk(data, 24) as disk:
            async with world(own, tmp_path / "world") as w, _admin(w) as other:
                await w.load(300)
                await running(w)
                await other.execute(f"CREATE TABLESPACE small LOCATION '{disk}'")
                await other.execute("ALTER TABLE pages SET TABLESPACE small")
                await other.execute("CREATE TABLE ballast (x text STORAGE PLAIN) TABLESPACE small")
                with pytest.raises(asyncpg.DiskFullError):
                    while True:
                        await other.execute(
                            "INSERT INTO ballast SELECT repeat('x', 8000) FROM generate_series(1, 50)"
                        )
                for page in await w.mongo["pages"].find().to_list(None):
                    text = os.urandom(20_000).hex()
                    await w.mongo["pages"].update_one({"_id": page["_id"]}, {"$set": {"title": text}})
                await _told(w, "53100")
                await other.execute("DROP TABLE ballast")
                await w.settled()
                await w.assert_nothing_lost()
                assert "Traceback" not in log(w, "apply")
                await other.execute("ALTER TABLE pages SET TABLESPACE pg_default")
                await other.execute("DROP TABLESPACE small")
                for role in ("apply", "publish"):
                    assert await w.stop(role) == 0
