"""What every move needs: both databases as the roles that may do it, the fences, both sides of documents."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import bson
from bson.codec_options import CodecOptions
from pydantic import SecretStr

from topics import Collection as RealCollection
from topics import TopicNames
from worker.errors import ConfigurationError, Transient, UsageError
from worker.mapping import Mapping as MappingFile
from worker.mapping import hashes, load
from worker.mapping.ids import HASHED, uuid_to_objectid
from worker.mongo.client import RAW, Client, connect, told_clearly, unasked
from worker.mongo.collections import fitting
from worker.mongo.fence_documents import FenceDocuments, Value
from worker.mongo.fence_lock import Turns
from worker.mongo.validation import values_of
from worker.mongo.validators import Validators
from worker.postgres import barriers, evidence, mapping_versions
from worker.postgres.checkpoints import Checkpoints
from worker.postgres.connect import Connection, end_when_silent, require_direct
from worker.postgres.connect import connect as connect_postgres
from worker.postgres.faults import FAULTS, beginning
from worker.publish.real_collections import RealCollections
from worker.reconcile.sides import Sides
from worker.retry import pause
from worker.settings import Settings

_MONGO_WITHIN = 2.0  # seconds to find a primary: a move that waits for longer aborts
_POSTGRES_WITHIN, _SOON = 30.0, 3.0
_SILENT = 5.0  # seconds
_SPEAK_EVERY, _SPEAK_WITHIN = 0.5, 1.0
_GIVE_UP_AFTER = 0.2  # seconds that a connection has to come to an end, past a bound
_ASK_EVERY = 0.1
CLEAN_WITHIN = 30.0


@dataclass(slots=True)
class Ground:
    """Opened by `opened`. ``holder`` names this controller in fence documents."""

    settings: Settings
    mapping: MappingFile
    client: Client
    fences: FenceDocuments
    validators: Validators
    sides: Sides
    real: RealCollections
    holder: str
    patience: float = CLEAN_WITHIN
    """Seconds in which something must be clean, if anything is wrong only in passing."""
    answer_within: float = _POSTGRES_WITHIN
    """Seconds for a statement of PostgreSQL."""
    silence: float | None = None
    """Seconds; whoever is silent for longer, to PostgreSQL, holds no tenant any more. None: for ever."""
    _control: Connection | None = None
    _reader: Connection | None = None

    @property
    def control(self) -> Connection:
        """As the role that may change phases. `Transient` while PostgreSQL was never reached."""
        return _there(self._control)

    @property
    def reader(self) -> Connection:
        """As the role that sees every tenant's rows; otherwise as `control`."""
        return _there(self._reader)

    async def again(self) -> None:
        """Connect to PostgreSQL where there is no connection. `CrossfadeError` while it is away."""
        if self._control is None or self._control.is_closed():
            self._control = await _control(self.settings, self.answer_within)
            if self.silence is not None:
                await end_when_silent(self._control, self.silence)
        if self._reader is None or self._reader.is_closed():
            self._reader = await _reader(self.settings, self.answer_within)

    async def answer_for(self, seconds: float) -> None:
        """Hold tenants from now on only while PostgreSQL hears of us at least every so many seconds.

        So who stands still does not keep them: `control` finds that nobody holds them, and goes on.
        """
        self.silence = seconds
        await end_when_silent(self.control, seconds)

    @asynccontextmanager
    async def heard(self) -> AsyncIterator[None]:
        """Let PostgreSQL hear of us while the block asks it for nothing, as while it waits for MongoDB."""
        ended = asyncio.Event()
        speaking = asyncio.create_task(self._speak(ended))
        try:
            yield
        finally:
            ended.set()
            await speaking

    async def _speak(self, ended: asyncio.Event) -> None:
        while not ended.is_set():
            with suppress(Transient, *FAULTS):  # then it is connected to anew, by whoever needs it
                await self.control.execute("SELECT 1", timeout=_SPEAK_WITHIN)
            await pause(ended, _SPEAK_EVERY)

    @asynccontextmanager
    async def bounded(self, seconds: float) -> AsyncIterator[None]:
        """Bound a block; `TimeoutError` beyond. A PostgreSQL that is silent then does not hold it up either:
        the connections are ended, and whoever holds tenants by them holds them no more.
        """
        giving_up = asyncio.get_running_loop().call_later(seconds + _GIVE_UP_AFTER, self.end)
        try:
            async with asyncio.timeout(seconds):
                yield
        finally:
            giving_up.cancel()

    def end(self) -> None:
        """End the connections to PostgreSQL."""
        for connection in (self._control, self._reader):
            if connection is not None:
                connection.terminate()

    async def clean(self, tenants: Collection[UUID]) -> evidence.Clean | None:
        """Return what is clean for all of these tenants; None where nothing is for as long as our patience.

        While writes go on, a document is on its way now and then, and for that moment nothing is clean.
        """
        until = time.monotonic() + self.patience
        while True:
            found = await evidence.clean(self.control, self.settings.publisher, tenants)
            if found is not None or time.monotonic() > until:
                return found
            await asyncio.sleep(_ASK_EVERY)

    async def copies(self) -> frozenset[barriers.Copy]:
        """Return the copies of all mapped collections; `Transient` names those that are not copied.

        A copy that is not the first is over when apply has all of it (C7): what it found of tenants that have
        left is in the outbox then.
        """
        logical = self.logical()
        found = {one.namespace: one for one in await barriers.copies(self.control, logical)}
        wrong = [f"{name} is {found[name].state}" for name in sorted(found) if found[name].state != "copied"]
        wrong += [f"{name} was never copied" for name in sorted(logical) if name not in found]
        if wrong:
            told = "wait for the copy; `crossfade status` tells how far it is"
            raise Transient("; ".join(wrong[:5]), remedy=told)
        return frozenset(found.values())

    def logical(self) -> dict[str, RealCollection]:
        """Return each logical collection by its namespace."""
        names = [self.mapping.logical(name) for name in self.mapping.collections]
        return {str(one): one for one in names}

    async def existing(self) -> list[str]:
        """Return the mapped collections that there are, those of all tenants where names have the tenant."""
        found = [
            one
            for logical in self.logical().values()
            for one in await fitting(self.client, self.real.sources, logical)
        ]
        return sorted(map(str, found))

    def maps(self, namespace: str) -> bool:
        """Whether a real collection is of the mapping."""
        return self.sides.planned(namespace) is not None

    async def values(self, tenants: Collection[UUID]) -> Mapping[UUID, list[Value]]:
        """Return what the tenants' ids are in MongoDB's documents; `UsageError` where that cannot be told."""
        return {tenant: await self._values(tenant) for tenant in tenants}

    async def _values(self, tenant: UUID) -> list[Value]:
        if tenant.version != HASHED:
            return values_of(tenant, uuid_to_objectid(tenant))
        # Its id is another value, of which the row id is a hash: names and documents tell that value.
        found: list[Value] = [tenant, *(await self.validators.named(tenant))]
        for one in await barriers.examples(self.reader, tenant):
            name = self._name(one.namespace)
            told = name and self.mapping.collections[name].tenant
            if not told or told.path is None:
                continue
            source = self.sides.source(one.namespace)
            identity = await self.sides.named(self.reader, source, one.row_id)
            if identity.document_id is None:
                continue
            if (value := await self._at(source.collection, identity.document_id, told.path)) is not None:
                found.append(value)
        if len(found) == 1 and any(c.tenant and c.tenant.path for c in self.mapping.collections.values()):
            raise UsageError(
                f"the id of tenant {tenant} in MongoDB cannot be told: no document of it is known",
                remedy="see that it is the right tenant, with `crossfade tenants`",
            )
        return found

    async def _at(self, collection: RealCollection, document_id: bytes, path: str) -> Any:
        decoded: CodecOptions[dict[str, Any]] = RAW.with_options(document_class=dict)  # pyright: ignore
        id_ = bson.decode(document_id, codec_options=decoded)[""]
        with told_clearly():
            place: Any = await self.client[collection.database][collection.name].find_one(
                {"_id": id_}, {path: 1}
            )
        for name in path.split("."):
            place = place.get(name) if isinstance(place, Mapping) else None
        return place

    def _name(self, namespace: str) -> str | None:
        return next((n for n in self.mapping.collections if str(self.mapping.logical(n)) == namespace), None)


@asynccontextmanager
async def opened(
    settings: Settings, role: str, *, alone: bool = False, turns: Turns | None = None
) -> AsyncIterator[Ground]:
    """Yield the ground with connections of its own; a `UsageError` says which service is away.

    `MappingError` where the rows are another mapping's, but not if ``alone``.

    ``alone``: both may be away, for what the other decides alone; `Ground.again` connects to PostgreSQL.
    ``turns``: what its moves share with others of this process.
    """
    mapping = load(settings.mapping)
    holder = f"{role} {socket.gethostname()}:{os.getpid()} {uuid4().hex[:8]}"
    async with AsyncExitStack() as stack:
        checkpoints = Checkpoints(settings.postgres_dsn.get_secret_value(), settings.publisher)
        if not alone:
            await checkpoints.open()
            stack.push_async_callback(checkpoints.close)
        uri = settings.mongo_uri.get_secret_value()
        if alone:
            client = unasked(uri, role, within=_MONGO_WITHIN)
        else:
            client = await connect(uri, role, within=_MONGO_WITHIN)
        stack.callback(client.close)
        names = TopicNames(settings.topic_prefix)
        topics = {
            str(one): (names.stream(one), settings.topic_partitions)
            for one in map(mapping.logical, mapping.collections)
        }
        ground = Ground(
            settings,
            mapping,
            client,
            FenceDocuments(client, settings.publisher),
            Validators(client, mapping, settings.publisher, holder, turns),
            Sides(client, mapping, topics),
            RealCollections(client, checkpoints, mapping.sources()),
            holder,
            answer_within=_SOON if alone else _POSTGRES_WITHIN,
            silence=_SILENT if alone else None,
        )
        stack.callback(ground.end)
        if not alone:
            await ground.again()
            with beginning(role):
                await mapping_versions.require(ground.control, hashes(mapping))
        yield ground


def _there(connection: Connection | None) -> Connection:
    if connection is None:
        raise Transient("PostgreSQL has not been reached yet")
    return connection


async def _control(settings: Settings, within: float) -> Connection:
    role = "may change phases, as crossfade_control does, on a direct connection"
    setting = "CROSSFADE_POSTGRES_CONTROL_DSN"
    connection = await _connected(settings.postgres_control_dsn, setting, "control", role, within)
    require_direct(connection, setting)  # whoever holds a tenant does so by the session
    return connection


async def _reader(settings: Settings, within: float) -> Connection:
    role = "sees the rows of every tenant, as crossfade_reader does"
    setting = "CROSSFADE_POSTGRES_READER_DSN"
    return await _connected(settings.postgres_reader_dsn, setting, "control reader", role, within)


async def _connected(dsn: SecretStr | None, setting: str, name: str, role: str, within: float) -> Connection:
    if dsn is None:
        raise ConfigurationError(f"{setting}: not set", remedy=f"name a role that {role}")
    return await connect_postgres(dsn.get_secret_value(), name, setting=setting, statement_timeout=within)
