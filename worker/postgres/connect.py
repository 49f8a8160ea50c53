"""Connections to PostgreSQL, with every way they can fail at start told in one line."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from worker.errors import ConfigurationError, ServiceUnavailable
from worker.postgres.faults import FAULTS
from worker.postgres.pooled import PooledConnection, is_pooled

Connection = asyncpg.Connection | PoolConnectionProxy
CONNECT_TIMEOUT = 10
_ANSWER_SOON = 3.0  # seconds
ANSWER_WITHIN = 90  # seconds; a batch's own limit at the server is 60


async def connect(
    dsn: str, role: str, *, setting: str = "CROSSFADE_POSTGRES_DSN", statement_timeout: float | None = None
) -> asyncpg.Connection:
    """Return a connection; a `UsageError` says why there is none, and which ``setting`` to mend.

    ``role`` names us to PostgreSQL. ``statement_timeout``: seconds that we wait for an answer, for a server
    that has vanished without a word; its own limits should be shorter. A transaction pooler in between is
    noticed.
    """
    where = _place(dsn)
    options: dict[str, Any] = {
        "timeout": CONNECT_TIMEOUT,
        "command_timeout": statement_timeout,
        "server_settings": {"application_name": f"crossfade {role}"},
    }
    try:
        connection = await asyncpg.connect(dsn, **options)
        try:
            pooled = await is_pooled(connection)
        except BaseException:
            connection.terminate()
            raise
        if pooled:
            connection.terminate()
            options |= {"connection_class": PooledConnection, "statement_cache_size": 0}
            connection = await asyncpg.connect(dsn, **options)
        await use_raw_json(connection)
    except ValueError:  # asyncpg's message would quote it
        raise ConfigurationError(
            f"{setting} is no PostgreSQL connection string",
            remedy="write postgresql://user:password@host:port/database, a / in the password as %2F",
        ) from None
    except asyncpg.InvalidAuthorizationSpecificationError:
        raise ServiceUnavailable(
            f"PostgreSQL at {where} refuses the user or password",
            remedy=f"check {setting}, and that `crossfade schema apply` has made the role",
        ) from None
    except asyncpg.InvalidCatalogNameError:
        raise ServiceUnavailable(
            f"PostgreSQL at {where} has no such database", remedy=f"create it, or mend {setting}"
        ) from None
    except FAULTS as error:
        raise ServiceUnavailable(
            f"PostgreSQL at {where} cannot be reached ({type(error).__name__})",
            remedy=f"start it, or mend {setting}",
        ) from None
    return connection


async def end_when_silent(connection: Connection, seconds: float) -> None:
    """Let PostgreSQL end this session, with all that it holds, when it asks for nothing for so long; and for
    3 s in the middle of a transaction.
    """
    await connection.execute(
        f"SET idle_session_timeout = '{round(seconds * 1000)}ms'; "
        "SET idle_in_transaction_session_timeout = '3s'",
        timeout=_ANSWER_SOON,
    )


async def use_raw_json(connection: asyncpg.Connection) -> None:
    """Let jsonb parameters and results be JSON bytes, so that none is decoded only to be encoded again."""
    await connection.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        format="binary",
        encoder=lambda value: b"\x01" + value,
        decoder=lambda value: value[1:],
    )


def _place(dsn: str) -> str:
    parts = urlsplit(dsn)
    host = parts.netloc.rpartition("@")[2] or "localhost"
    if "@" in parts.path + parts.query + parts.fragment:
        return "?"  # an unescaped / or # in the password ends the host early: it is no host
    return f"{host if ':' in host else f'{host}:5432'}{parts.path}"


def require_direct(connection: Connection, setting: str) -> None:
    """`ConfigurationError`, and the connection ended, where ``setting`` leads to a transaction pooler."""
    if type(connection) is PooledConnection:  # (isinstance: asyncpg says so of every connection.)
        connection.terminate()
        raise ConfigurationError(
            f"{setting} leads to a transaction pooler", remedy="name PostgreSQL itself there"
        )
