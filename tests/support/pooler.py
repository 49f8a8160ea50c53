"""PgBouncer before a world's PostgreSQL, pooling by transaction."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from tests.support.world import World
from worker.embedded import prerequisites
from worker.embedded.state import free_port
from worker.errors import ServiceUnavailable

_CONFIG = """
[databases]
{database} = host=127.0.0.1 port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = trust
auth_file = users
admin_users = crossfade_sync
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 100
server_reset_query =
query_wait_timeout = 30
"""
_USERS = ("crossfade_sync", "crossfade_reader", "crossfade_control", "application_role")


@asynccontextmanager
async def pooler(w: World, pool_size: int) -> AsyncIterator[int]:
    """Run PgBouncer, and give its port. Skips the test where it is not installed and cannot be."""
    try:
        program = await prerequisites.program("pgbouncer", "pgbouncer", print)
    except ServiceUnavailable as missing:
        pytest.skip(str(missing))
    home = w.directory / "pgbouncer"
    listen = free_port(set())
    await asyncio.to_thread(_configure, home, w, listen, pool_size)
    root = os.geteuid() == 0  # it refuses to run as root
    with (home / "log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            program,
            "pgbouncer.ini",
            cwd=home,
            stdout=log,
            stderr=log,
            user="nobody" if root else None,
            group="nogroup" if root else None,
            extra_groups=[] if root else None,
        )
    try:
        await w.until("PgBouncer listens", lambda: process.returncode is not None or _listens(listen), 20)
        assert process.returncode is None, await asyncio.to_thread((home / "log").read_text)
        yield listen
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def switching(port: int) -> AsyncIterator[None]:
    """Let PgBouncer's clients wait while the block puts another server in the place of theirs."""
    console = await asyncpg.connect(f"postgresql://crossfade_sync@127.0.0.1:{port}/pgbouncer")
    pausing = asyncio.create_task(console.execute("PAUSE"))  # until the last transaction has ended
    yield
    await pausing
    await console.execute("RESUME")
    console.terminate()


def _configure(home: Path, w: World, listen: int, pool_size: int) -> None:
    home.mkdir(mode=0o755)
    port = int(w.services.postgres_dsn.rpartition(":")[2].partition("/")[0])
    text = _CONFIG.format(database=w.name, port=port, listen=listen, pool_size=pool_size)
    (home / "pgbouncer.ini").write_text(text)
    (home / "users").write_text("".join(f'"{user}" ""\n' for user in _USERS))


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
