"""Connections through a transaction pooler (PgBouncer's ``pool_mode = transaction``).

The pooler gives each transaction another of its sessions, and each session to many clients. So nothing may
outlive a transaction, neither a prepared statement nor a setting.
"""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

_ANSWER_WITHIN = 10.0  # seconds


async def is_pooled(connection: asyncpg.Connection) -> bool:
    """Whether another session answers than the one that greeted us. Leaves no prepared statement behind."""
    answer = io.BytesIO()
    await connection.copy_from_query("SELECT pg_backend_pid()", output=answer, timeout=_ANSWER_WITHIN)
    return int(answer.getvalue()) != connection.get_server_pid()


class PooledConnection(asyncpg.Connection):
    """Puts each statement with results or arguments into a transaction; it must be opened without a cache.

    asyncpg first asks what the statement's types are, and for one that it has not met changes a setting of
    the session and sets it back. Outside a transaction each step could reach another session.
    """

    async def execute(self, query: str, *args: Any, **options: Any) -> str:
        """As asyncpg's. Without arguments a query is one message, whose transactions are its own affair."""
        if not args:
            return await super().execute(query, **options)
        async with self._within():
            return await super().execute(query, *args, **options)

    async def executemany(self, command: str, args: Any, **options: Any) -> None:
        """As asyncpg's."""
        async with self._within():
            await super().executemany(command, args, **options)

    async def fetch(self, query: str, *args: Any, **options: Any) -> Any:
        """As asyncpg's."""
        async with self._within():
            return await super().fetch(query, *args, **options)

    async def fetchrow(self, query: str, *args: Any, **options: Any) -> Any:
        """As asyncpg's."""
        async with self._within():
            return await super().fetchrow(query, *args, **options)

    async def fetchval(self, query: str, *args: Any, **options: Any) -> Any:
        """As asyncpg's."""
        async with self._within():
            return await super().fetchval(query, *args, **options)

    @asynccontextmanager
    async def _within(self) -> AsyncIterator[None]:
        if self.is_in_transaction():
            yield
            return
        async with self.transaction():
            yield
