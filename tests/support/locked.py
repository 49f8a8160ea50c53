"""Servers that ask for a password: a role of PostgreSQL, and a mongod that is no replica set."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo.errors import ConnectionFailure

from worker.embedded import Services, prerequisites
from worker.embedded.state import free_port


@asynccontextmanager
async def role_with_password(services: Services, role: str, password: str) -> AsyncIterator[None]:
    """Make a role that PostgreSQL lets in only with its password; the others stay trusted."""
    admin = await asyncpg.connect(services.postgres_admin_dsn)
    server = services.process("postgres")
    assert server is not None
    rules = Path(server.cwd()) / "pg_hba.conf"  # it runs in its data directory
    try:
        before = await asyncio.to_thread(rules.read_text)
        await admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{password}'")
        try:
            await asyncio.to_thread(rules.write_text, f"host all {role} 127.0.0.1/32 scram-sha-256\n{before}")
            await admin.execute("SELECT pg_reload_conf()")
            yield
        finally:
            await asyncio.to_thread(rules.write_text, before)
            await admin.execute("SELECT pg_reload_conf()")
            await admin.execute(f"DROP ROLE {role}")
    finally:
        await admin.close()


@asynccontextmanager
async def standalone_mongod(directory: Path, user: str, password: str) -> AsyncIterator[str]:
    """Run a mongod without a replica set that asks for a password; give its host and port."""
    await asyncio.to_thread(directory.mkdir)
    port = free_port(set())
    process = await asyncio.create_subprocess_exec(
        str(prerequisites.mongod_program()),
        *("--dbpath", str(directory), "--port", str(port), "--bind_ip", "127.0.0.1"),
        *("--auth", "--nounixsocket", "--wiredTigerCacheSizeGB", "0.25"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await _create_user(port, user, password)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _create_user(port: int, user: str, password: str) -> None:
    # Without any user, mongod lets a connection from its own machine make the first one.
    client = AsyncIOMotorClient("127.0.0.1", port, directConnection=True, serverSelectionTimeoutMS=500)
    try:
        async with asyncio.timeout(20):
            while True:
                try:
                    await client.admin.command("createUser", user, pwd=password, roles=["root"])
                    return
                except ConnectionFailure:
                    await asyncio.sleep(0.05)
    finally:
        client.close()
