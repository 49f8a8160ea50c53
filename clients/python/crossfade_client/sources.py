"""Who is asked for phases: PostgreSQL, which also tells of changes by itself, or the control API."""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlencode, urlsplit
from uuid import UUID

import asyncpg

from crossfade_client.phases import NotUnderstood, Phase, known_phase

CHANNEL = "crossfade_phase"
_PHASES = "SELECT tenant_id, phase::text, epoch FROM crossfade.tenant WHERE tenant_id = ANY($1::uuid[])"
_REPORT = "SELECT crossfade.tell_shadow_reads($1::jsonb)"
_LOST = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)
_NAMED = {"application_name": "crossfade-client"}
_TENANTS_AT_ONCE = 100  # in one request's address


class Away(Exception):
    """The source does not answer, or not in a way that this version understands."""


class Heard(NamedTuple):
    """A tenant's phase and epoch."""

    tenant: UUID
    phase: Phase
    epoch: int


Hear = Callable[[Heard], None]


class Source(Protocol):
    """Answers for phases; ``hear`` is called for each change that it tells of by itself."""

    hear: Hear
    anew: Callable[[], None]
    """Called when changes may have been missed."""

    @property
    def tells(self) -> bool:
        """Whether changes are told now, so that nobody needs to ask again and again."""
        ...

    async def fetch(self, tenants: Collection[UUID]) -> list[Heard]:
        """Return the phases of those tenants that have one; `Away` without an answer."""
        ...

    async def report(self, shadows: str) -> None:
        """Tell the operator what shadow reads have found; `Away` where that cannot be."""
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...


def _nothing(*_: object) -> None:
    return None


class SqlSource:
    """PostgreSQL, by one connection of its own. ``listen`` only on a direct one: no pooler passes NOTIFY
    on."""

    def __init__(self, dsn: str, *, listen: bool, answer_within: float, **options: Any) -> None:
        self.hear: Hear = _nothing
        self.anew: Callable[[], None] = _nothing
        self._dsn, self._listen, self._within = dsn, listen, answer_within
        # No prepared statement: behind a pooler the next session would not know it.
        self._options: dict[str, Any] = {"statement_cache_size": 0, "server_settings": _NAMED} | options
        self._connection: asyncpg.Connection | None = None

    @property
    def tells(self) -> bool:
        """As `Source`."""
        return self._listen and self._connection is not None and not self._connection.is_closed()

    async def fetch(self, tenants: Collection[UUID]) -> list[Heard]:
        """As `Source`. Not for two callers at once."""
        try:
            async with asyncio.timeout(self._within):
                connection = await self._connected()
                # In one transaction, as behind a pooler each could reach another session.
                async with connection.transaction(readonly=True):
                    rows = await connection.fetch(_PHASES, list(tenants))
            return [Heard(row[0], known_phase(row[1]), row[2]) for row in rows]
        except (*_LOST, ValueError) as error:
            self._drop()
            raise Away(_said(error)) from error
        except BaseException:  # given up in the middle of an answer
            self._drop()
            raise

    async def report(self, shadows: str) -> None:
        """As `Source`, by a connection for this alone: the other one may be asked at the same time."""
        try:
            async with asyncio.timeout(self._within):
                connection: asyncpg.Connection = await asyncpg.connect(self._dsn, **self._options)
                try:
                    await connection.execute(_REPORT, shadows)
                finally:
                    connection.terminate()
        except (*_LOST, ValueError) as error:
            raise Away(_said(error)) from error

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        connection: asyncpg.Connection = await asyncpg.connect(self._dsn, **self._options)
        self._connection = connection
        if self._listen:
            connection.add_termination_listener(self._ended)
            await connection.add_listener(CHANNEL, self._told)
            self.anew()
        return connection

    def _told(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        try:
            told = json.loads(str(payload))
            heard = Heard(UUID(told["tenant"]), known_phase(told["phase"]), int(told["epoch"]))
        except (ValueError, KeyError, TypeError):
            self.anew()  # not understood: the next answer will tell
        else:
            self.hear(heard)

    def _ended(self, connection: object) -> None:
        if connection is self._connection:
            self.anew()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def close(self) -> None:
        """As `Source`."""
        self._drop()


class HttpSource:
    """The control API, asked again and again; ``token`` as in CROSSFADE_CONTROL_TOKEN."""

    def __init__(self, url: str, *, token: str | None, ca_file: str | None, answer_within: float) -> None:
        self.hear: Hear = _nothing
        self.anew: Callable[[], None] = _nothing
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("the control API's address begins with http:// or https://")
        self._host, self._port, self._path = parts.hostname, parts.port, parts.path.rstrip("/")
        self._tls = ssl.create_default_context(cafile=ca_file) if parts.scheme == "https" else None
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._within = answer_within

    @property
    def tells(self) -> bool:
        """As `Source`: it never does."""
        return False

    async def fetch(self, tenants: Collection[UUID]) -> list[Heard]:
        """As `Source`."""
        ids, found = list(tenants), list[Heard]()
        try:
            for first in range(0, len(ids), _TENANTS_AT_ONCE):
                found += await asyncio.to_thread(self._get, ids[first : first + _TENANTS_AT_ONCE])
        except (http.client.HTTPException, OSError, ValueError, KeyError, TypeError) as error:
            raise Away(_said(error)) from error
        return found

    def _get(self, tenants: list[UUID]) -> list[Heard]:
        if self._tls is None:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=self._within)
        else:
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=self._within, context=self._tls
            )
        try:  # redirects are not followed: they would carry the token elsewhere
            query = urlencode([("id", str(tenant)) for tenant in tenants])
            connection.request("GET", f"{self._path}/v1/tenants?{query}", headers=self._headers)
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                raise NotUnderstood(f"the control API answers {response.status}")
            return [
                Heard(UUID(one["tenant"]), known_phase(one["phase"]), int(one["epoch"]))
                for one in json.loads(body)["tenants"]
            ]
        finally:
            connection.close()

    async def report(self, shadows: str) -> None:
        """As `Source`: the API has no place for it."""
        raise Away("the control API takes no reports")

    async def close(self) -> None:
        """As `Source`."""


def _said(error: BaseException) -> str:
    # A driver's message could quote a password.
    return str(error) if isinstance(error, NotUnderstood) else type(error).__name__
