"""Connections to PostgreSQL, with every way they can fail at start told in one line."""

from __future__ import annotations

from urllib.parse import urlsplit

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from worker.errors import ServiceUnavailable
from worker.postgres.faults import CONNECTION_LOST

Connection = asyncpg.Connection | PoolConnectionProxy
CONNECT_TIMEOUT = 10


async def connect(dsn: str, role: str) -> asyncpg.Connection:
    """Return a connection; `ServiceUnavailable` says why there is none. ``role`` names us to it."""
    where = _place(dsn)
    try:
        connection = await asyncpg.connect(
            dsn, timeout=CONNECT_TIMEOUT, server_settings={"application_name": f"crossfade {role}"}
        )
    except asyncpg.InvalidAuthorizationSpecificationError:
        raise ServiceUnavailable(
            f"PostgreSQL at {where} refuses the user or password",
            remedy="check CROSSFADE_POSTGRES_DSN, and that `crossfade schema apply` has made the role",
        ) from None
    except asyncpg.InvalidCatalogNameError:
        raise ServiceUnavailable(
            f"PostgreSQL at {where} has no such database", remedy="create it, or mend CROSSFADE_POSTGRES_DSN"
        ) from None
    except (asyncpg.PostgresError, *CONNECTION_LOST) as error:
        raise ServiceUnavailable(
            f"PostgreSQL at {where} cannot be reached ({type(error).__name__})",
            remedy="start it, or mend CROSSFADE_POSTGRES_DSN",
        ) from None
    await use_raw_json(connection)
    return connection


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
    return f"{parts.hostname or 'localhost'}:{parts.port or 5432}{parts.path}"
