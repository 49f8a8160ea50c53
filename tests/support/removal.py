"""What a test leaves behind is removed, so that the services stay as quick as they were at first.

A Kafka that stood still elects a leader of each partition anew, and a PostgreSQL that was killed syncs each
file: what hundreds of tests have left makes that last for minutes, and then every later test fails.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import asyncpg
from aiokafka.errors import KafkaError
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo.errors import AutoReconnect, OperationFailure

from tests.support.hands import administering
from worker.embedded import Services

_DROP_PENDING = 215  # MongoDB's DatabaseDropPending


async def remove(services: Services, client: AsyncIOMotorClient, name: str) -> None:
    """Remove the databases and topics whose names begin with a name, and close the client.

    What a test took from Kafka or PostgreSQL for good may be away: then its things stay. Transactions of
    processes that were killed are ended, which MongoDB does by itself only after 60 s.
    """
    await client.admin.command("killAllSessions", [])
    for database in await client.list_database_names():
        if database.startswith(name):
            await _drop(client, database)
    client.close()
    with suppress(KafkaError, OSError):
        async with administering(services.kafka_bootstrap) as admin:
            topics = [topic for topic in await admin.list_topics() if topic.startswith(name)]
            await admin.delete_topics(topics)
    with suppress(asyncpg.PostgresError, OSError, TimeoutError):
        connection = await asyncpg.connect(services.postgres_admin_dsn, timeout=10)
        try:
            await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)', timeout=60)
        finally:
            connection.terminate()


async def _drop(client: AsyncIOMotorClient, name: str) -> None:
    """Drop a database, though mongod was away meanwhile, which the driver may learn only now."""
    while True:
        try:
            await client.drop_database(name)
            return
        except AutoReconnect:
            continue  # the drop may still be under way, and refuse the next
        except OperationFailure as error:
            if error.code != _DROP_PENDING:
                raise
            await asyncio.sleep(0.1)
