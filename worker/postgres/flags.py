"""Tenants' phases as the control API tells them, by one connection that is opened again when it was lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import asyncpg

from worker.errors import SchemaError, ServiceUnavailable
from worker.postgres.connect import Connection, connect
from worker.postgres.faults import FAULTS, describe, unusable

_T = TypeVar("_T")
_ANSWER_WITHIN = 5.0  # seconds
_COLUMNS = "tenant_id, phase::text, epoch, changed_at"
_OF = f"SELECT {_COLUMNS} FROM crossfade.tenant WHERE tenant_id = ANY($1::uuid[])"  # noqa: S608
_PAGE = f"""
SELECT {_COLUMNS} FROM crossfade.tenant WHERE $1::uuid IS NULL OR tenant_id > $1 ORDER BY tenant_id LIMIT $2
"""  # noqa: S608
_TRANSITIONS = """
SELECT from_phase::text, to_phase::text, epoch, at, database_user, os_user, reason
FROM crossfade.transition WHERE tenant_id = $1 ORDER BY transition_id DESC LIMIT $2
"""


class TenantPhase(NamedTuple):
    """Where a tenant stands."""

    tenant: UUID
    phase: str
    epoch: int
    changed_at: datetime


class Transition(NamedTuple):
    """A change of phase. ``epoch``: after it."""

    from_phase: str
    to_phase: str
    epoch: int
    at: datetime
    database_user: str
    os_user: str
    reason: str


class Flags:
    """Reads phases. Each method raises `ServiceUnavailable` or `SchemaError` when it cannot."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: asyncpg.Connection | None = None
        self._one_at_a_time = asyncio.Lock()

    async def of(self, tenants: Sequence[UUID]) -> list[TenantPhase]:
        """Return those of these tenants that are known."""
        rows = await self._do(lambda connection: connection.fetch(_OF, tenants))
        return [TenantPhase(*row) for row in rows]

    async def page(self, after: UUID | None, limit: int) -> list[TenantPhase]:
        """Return tenants by their ids' order, from the first one after ``after``."""
        rows = await self._do(lambda connection: connection.fetch(_PAGE, after, limit))
        return [TenantPhase(*row) for row in rows]

    async def transitions(self, tenant: UUID, limit: int) -> list[Transition]:
        """Return a tenant's changes of phase, the newest first."""
        rows = await self._do(lambda connection: connection.fetch(_TRANSITIONS, tenant, limit))
        return [Transition(*row) for row in rows]

    def close(self) -> None:
        """Let go of the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def _do(self, ask: Callable[[Connection], Coroutine[Any, Any, _T]]) -> _T:
        try:
            async with asyncio.timeout(_ANSWER_WITHIN), self._one_at_a_time:
                try:
                    return await ask(await self._connected())
                except asyncpg.PostgresError as error:
                    if unusable(error):
                        self.close()
                    raise
                except BaseException:  # in the middle of an answer
                    self.close()
                    raise
        except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError, asyncpg.UndefinedColumnError):
            raise SchemaError(
                "the database has no control schema, or an older one", remedy="run `crossfade schema apply`"
            ) from None
        except asyncpg.InsufficientPrivilegeError:
            raise SchemaError(
                "the role of CROSSFADE_POSTGRES_CONTROL_DSN may not read schema crossfade",
                remedy="connect as crossfade_control",
            ) from None
        except FAULTS as error:
            raise ServiceUnavailable(
                f"PostgreSQL does not answer ({describe(error)})", remedy="check the server"
            ) from None

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(
                self._dsn,
                "control",
                setting="CROSSFADE_POSTGRES_CONTROL_DSN",
                statement_timeout=_ANSWER_WITHIN,
            )
        return self._connection
