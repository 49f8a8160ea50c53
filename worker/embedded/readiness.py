"""Asking a service whether it is ready, and the first thing it must be told; the one file here with drivers.

Each function asks once: True when the service is ready, False when not yet. What is wrong for good is raised.
"""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo.errors import AutoReconnect, OperationFailure

_PATIENCE = 2  # seconds for one question

_NOT_YET_INITIALIZED = 94
_ALREADY_INITIALIZED = 23
_INVALID_CONFIG = 93


async def mongod_is_ready(port: int, replica_set: str) -> bool:
    """Ask mongod whether it is a writable primary; make it a replica set of one where it is not yet."""
    if not await listens(port):
        return False
    client: AsyncIOMotorClient[dict[str, Any]] = AsyncIOMotorClient(
        "127.0.0.1",
        port,
        directConnection=True,
        serverSelectionTimeoutMS=int(_PATIENCE * 1000),
        socketTimeoutMS=int(_PATIENCE * 1000),
    )
    try:
        hello = await client.admin.command("hello")
        if hello.get("isWritablePrimary"):
            return hello.get("me") == f"127.0.0.1:{port}"
        await _make_replica_set(client, f"127.0.0.1:{port}", replica_set)
    except AutoReconnect:
        pass
    finally:
        client.close()
    return False


async def _make_replica_set(client: AsyncIOMotorClient[dict[str, Any]], host: str, name: str) -> None:
    config = {"_id": name, "version": 1, "members": [{"_id": 0, "host": host}]}
    try:
        found = (await client.admin.command("replSetGetConfig"))["config"]
        if found["members"][0]["host"] != host:  # it was given another port since
            config = {
                **found,
                "version": found["version"] + 1,
                "members": [{**found["members"][0], "host": host}],
            }
            await client.admin.command({"replSetReconfig": config, "force": True})
    except OperationFailure as error:
        if error.code == _NOT_YET_INITIALIZED:
            await _initiate(client, config)
        elif error.code != _INVALID_CONFIG:
            raise


async def _initiate(client: AsyncIOMotorClient[dict[str, Any]], config: dict[str, Any]) -> None:
    try:
        await client.admin.command({"replSetInitiate": config})
    except OperationFailure as error:
        if error.code != _ALREADY_INITIALIZED:
            raise


async def kafka_is_ready(port: int) -> bool:
    """Ask Kafka for its brokers and topics."""
    if not await listens(port):
        return False
    admin = AIOKafkaAdminClient(
        bootstrap_servers=f"127.0.0.1:{port}", request_timeout_ms=int(_PATIENCE * 1000)
    )
    try:
        await asyncio.wait_for(admin.start(), _PATIENCE)
        cluster = await asyncio.wait_for(admin.describe_cluster(), _PATIENCE)
    except (KafkaError, OSError, TimeoutError):
        return False
    finally:
        await admin.close()
    return bool(cluster["brokers"])


async def postgres_is_ready(port: int, database: str) -> bool:
    """Ask PostgreSQL for a connection, and make the database where it is missing."""
    try:
        connection = await asyncpg.connect(
            host="127.0.0.1", port=port, user="postgres", database="postgres", timeout=_PATIENCE, ssl=False
        )
    except (OSError, TimeoutError, asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError):
        return False
    try:
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", database):
            await connection.execute(f'CREATE DATABASE "{database}"')
    finally:
        await connection.close()
    return True


async def listens(port: int) -> bool:
    """Say whether a connection is accepted. Drivers would log that it is not."""
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), _PATIENCE)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
