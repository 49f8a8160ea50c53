"""The fence in MongoDB: validators that refuse tenants' writes (docs/protocol.md, Where decisions live).

A validator is computed from the fence documents of all tenants, under one lock, set by one collMod for each
collection that a majority has, and read back. An application's own validator is kept beside ours where it was
strict and an error; otherwise it is set aside while any tenant is refused. It is put back when none is.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from enum import Enum, auto
from typing import Any
from uuid import UUID

import bson
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions
from pymongo import ReadPreference, ReplaceOne, WriteConcern
from pymongo.errors import OperationFailure

from topics import Collection
from worker.mapping import Mapping as MappingFile
from worker.mapping import row_id
from worker.mapping.sources import Source, named_tenant
from worker.mongo.client import Client
from worker.mongo.fence_documents import DATABASE, MAJORITY_MS, FenceDocuments, Value, refused
from worker.mongo.fence_lock import Attempt, FenceLock, Held, InTheWay, Turns
from worker.mongo.validation import (
    ACTION,
    LEVEL,
    NONE,
    Rule,
    Validation,
    ours,
    own_of,
    refuses,
    undecoded,
    with_ours,
)

SET_ASIDE = "fence_set_aside"
"""Our collection of applications' validators, while ours are in their place."""

FIRST_PATIENCE = 0.02  # seconds that a collMod waits for its collection; doubled each time
_NO_TIME = "no time was left for it"
_NO_MAJORITY = "no majority of the replica set answers"
_REST = 2  # times as long writers go on before the next one
_WHOLE = 0.9  # of a call's time
_NOT_FOUND, _EXISTS, _TIMED_OUT, _KILLED, _INDEX_BUILD = 26, 48, 50, 11601, 12587
_CODEC: CodecOptions[dict[str, Any]] = CodecOptions(
    tz_aware=True, uuid_representation=UuidRepresentation.STANDARD
)


class Validators:
    """The validators of a mapping's real collections."""

    def __init__(
        self,
        client: Client,
        mapping: MappingFile,
        migration: str,
        holder: str,
        turns: Turns | None = None,
    ) -> None:
        self._client, self._mapping, self._migration = client, mapping, migration
        self._fences = FenceDocuments(client, migration)
        majority = WriteConcern("majority", wtimeout=MAJORITY_MS)
        ours = client[DATABASE]
        self._lock = FenceLock(client, migration, holder)
        self._aside: Any = ours.get_collection(SET_ASIDE, write_concern=majority)
        self._turns = Turns() if turns is None else turns

    @asynccontextmanager
    async def turn(self, within: float) -> AsyncIterator[None]:
        """Yield when nobody sets validators, so that a pause can begin; `fence` inside.

        Moves of one `Turns` come in one after the other. Other commands are waited for ``within`` seconds,
        then `InTheWay`; one of them may still be first.
        """
        async with self._turns.fencing:
            try:
                async with asyncio.timeout(within):
                    await self._lock.released()
            except TimeoutError:
                raise InTheWay("all collections", "another command sets them for too long") from None
            yield

    async def busy(self) -> bool:
        """Whether somebody sets validators in this moment."""
        return await self._lock.held()

    async def fence(self, tenants: Iterable[UUID], within: float) -> None:
        """Refuse these tenants everywhere; their fence documents say so already. Return when a majority does.

        `InTheWay` when that takes more than ``within`` seconds for a collection: then others may refuse them.
        """
        wanted = set(tenants)
        await self._set(within, lambda rule: rule.path is not None or rule.only in wanted)

    async def wrong(self) -> list[str]:
        """Return the collections whose validators, at the primary, are not what the fence documents say."""
        found, aside, live = await asyncio.gather(self._fences.read(), self._set_aside(), self._live())
        fences = refused(found.values())
        return [
            str(rule.collection)
            for rule in self._rules(live)
            if not refuses(live.get(str(rule.collection)), part := ours(rule, fences), exactly=True)
            or (str(rule.collection) in aside) != bool(part)
        ]

    async def heal(self, within: float) -> list[str]:
        """Make all validators what the fence documents say; return where they were not. `InTheWay` as of
        `fence`.
        """
        return await self._set(within, lambda rule: False)

    async def restore(self, within: float) -> None:
        """Put applications' validators back, whatever the fence documents say. `InTheWay` as of `fence`."""
        await self._set(within, lambda rule: False, nobody=True)

    async def read_back(self, tenants: Iterable[UUID]) -> bool:
        """Whether the primary's validators refuse these tenants everywhere, whatever they do to others."""
        wanted = set(tenants)
        fences = [one for one in refused((await self._fences.read()).values()) if one.tenant in wanted]
        live = await self._live()
        return len(fences) == len(wanted) and all(
            refuses(live.get(str(rule.collection)), ours(rule, fences)) for rule in self._rules(live)
        )

    async def named(self, tenant: UUID) -> list[Value]:
        """Return a tenant's id where names of collections that there are, or the mapping, tell it."""
        sources = self._mapping.sources()
        found = (source for name in await self._live() if (source := sources.find(name)) is not None)
        return [value for value in map(self._told, found) if value is not None and row_id(value) == tenant]

    def _told(self, source: Source) -> Value | None:
        """Return the tenant of a collection that has but one; None where documents tell theirs."""
        told = self._mapping.collections[source.name].tenant
        if told is None or told.parent is not None or told.path is not None:
            return None
        value = told.constant if told.constant is not None else source.tenant
        return named_tenant(value) if isinstance(value, str) else value

    def _rules(self, live: Mapping[str, Validation]) -> list[Rule]:
        """Return how each real collection refuses a tenant; those of exact names also before they exist."""
        sources = self._mapping.sources()
        logical = [self._mapping.logical(name) for name in self._mapping.collections]
        names = {*live, *(str(one) for one in logical if sources.exact(one))}
        rules: list[Rule] = []
        for namespace in sorted(names):
            source = sources.find(namespace)
            told = source and self._mapping.collections[source.name].tenant
            if source is None or told is None or told.parent is not None:
                continue
            if told.path is not None:
                rules.append(Rule(Collection.parse(namespace), told.path, None))
                continue
            rules.append(Rule(Collection.parse(namespace), None, row_id(self._told(source))))
        return rules

    async def _set(self, within: float, always: Callable[[Rule], bool], *, nobody: bool = False) -> list[str]:
        """Set all validators to what the fence documents say (D5), and read them back; return where.

        ``always``: whether a collMod is sent though nothing differs, for then a majority has what it sets.
        """
        async with self._lock.taken(time.monotonic() + within) as lock:
            found, aside, live = await asyncio.gather(self._fences.read(), self._set_aside(), self._live())
            fences = [] if nobody else refused(found.values())
            wanted: dict[Rule, Validation] = {}
            keep: dict[str, Validation] = {}
            forget: list[str] = []
            rules = self._rules(live)
            if nobody:  # also of collections that the mapping has had, and has no more
                gone = (aside.keys() & live.keys()) - {str(rule.collection) for rule in rules}
                rules += [Rule(Collection.parse(namespace), None, None) for namespace in sorted(gone)]
            for rule in rules:
                namespace = str(rule.collection)
                part = ours(rule, fences)
                own = own_of(namespace, aside.get(namespace), live.get(namespace))
                wanted[rule] = with_ours(part, own)
                if part and aside.get(namespace) != own:
                    keep[namespace] = own
                elif not part and namespace in aside:
                    forget.append(namespace)
            await self._keep(keep)
            todo = [rule for rule in wanted if always(rule) or not _same(rule, wanted, live)]
            changed = [str(rule.collection) for rule in todo]
            while todo:
                if lock.until <= time.monotonic():
                    raise InTheWay(str(todo[0].collection), _NO_TIME)
                lock.answered = False
                try:
                    await _all(
                        self._collmod(rule.collection, wanted[rule], lock, str(rule.collection) in live)
                        for rule in todo
                    )
                except InTheWay as error:
                    error.sent = changed
                    raise
                lock.answered = True
                live = await self._live()
                todo = [rule for rule in wanted if not _same(rule, wanted, live)]
            if forget:
                await self._aside.delete_many({"_id": {"$in": [self._id(one) for one in forget]}})
        return changed

    async def _collmod(self, collection: Collection, wanted: Validation, lock: Attempt, there: bool) -> None:
        """Send one, which waits but a moment for the collection, until it gets it.

        All writers wait behind it. When they hold the application's last connections, then so do the
        transactions that it waits for, and none of them comes to its end before it gives up. Where they last
        longer, it waits longer each time, until it has waited for the whole of a call; then it begins anew.
        """
        name, late = str(collection), False
        most = lock.until - time.monotonic()
        while (left := lock.until - time.monotonic()) > 0:
            patience = self._turns.patience.get(name, FIRST_PATIENCE)
            rest = _REST * patience
            waits = left if late or patience + rest >= left else patience
            command = {
                "collMod" if there or late else "create": collection.name,
                "validator": dict(wanted.validator),
                "validationLevel": wanted.level,
                "validationAction": wanted.action,
                "maxTimeMS": math.ceil(waits * 1000),
                "comment": lock.name,
                "writeConcern": {"w": "majority", "wtimeout": MAJORITY_MS},
            }
            outcome = await self._sent(collection, command)
            if outcome is _Sent.DONE:
                self._turns.patience.pop(name, None)
                return
            if outcome is _Sent.LATE:  # it is set: the same one again waits for a majority only
                late = True
                continue
            self._turns.patience[name] = patience * 2 if waits < most * _WHOLE else FIRST_PATIENCE
            await asyncio.sleep(max(0.0, min(rest, lock.until - time.monotonic())))
        raise InTheWay(name, _NO_MAJORITY) if late else Held(name)

    async def _sent(self, collection: Collection, command: dict[str, Any]) -> _Sent:
        try:
            reply = await self._client[collection.database].command(command)
        except OperationFailure as error:
            if error.code == _TIMED_OUT:
                return _Sent.HELD
            if error.code == _KILLED:
                raise InTheWay(str(collection), "another controller ended the collMod") from None
            if error.code == _INDEX_BUILD:
                raise InTheWay(str(collection), "an index is being built there") from None
            if error.code not in (_EXISTS, _NOT_FOUND):  # made, or dropped, in this moment: look again
                raise
            return _Sent.DONE
        if (late := reply.get("writeConcernError")) is None:  # which `command` does not raise
            return _Sent.DONE
        if late.get("code") == _TIMED_OUT:
            return _Sent.LATE
        raise InTheWay(str(collection), _NO_MAJORITY)

    async def _keep(self, own: Mapping[str, Validation]) -> None:
        """Note applications' own validations, before they are replaced."""
        if not own:
            return
        await self._aside.bulk_write(
            [
                ReplaceOne(
                    {"_id": self._id(namespace)},
                    {"validator": bson.encode(one.validator), "level": one.level, "action": one.action},
                    upsert=True,
                )
                for namespace, one in own.items()
            ],
            ordered=False,
        )

    async def _set_aside(self) -> dict[str, Validation]:
        found = self._aside.find({"_id.migration": self._migration})
        return {
            one["_id"]["namespace"]: Validation(
                undecoded(bson.decode(one["validator"], codec_options=_CODEC)), one["level"], one["action"]
            )
            async for one in found
        }

    async def _live(self) -> dict[str, Validation]:
        """Return the validation of each collection of the mapping's databases, as the primary has it."""
        name, _ = self._mapping.sources().names()
        names = [name]
        if not isinstance(name, str):
            names = [one for one in await self._client.list_database_names() if name.fullmatch(one)]
        found: dict[str, Validation] = {}
        for database in names:
            primary = self._client.get_database(
                str(database), codec_options=_CODEC, read_preference=ReadPreference.PRIMARY
            )
            async for one in await primary.list_collections(filter={"type": "collection"}):
                options = one.get("options", {})
                found[f"{database}.{one['name']}"] = Validation(
                    undecoded(options.get("validator", {})),
                    options.get("validationLevel", LEVEL),
                    options.get("validationAction", ACTION),
                )
        return found

    def _id(self, namespace: str) -> dict[str, str]:
        return {"migration": self._migration, "namespace": namespace}


async def _all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do all of it at once, and wait until it has ended, even when cancelled meanwhile.

    Nobody may take a collMod for ended that is yet to take effect; each has its own limit of time.
    """
    tasks = {asyncio.create_task(work) for work in works}
    try:
        await asyncio.wait(tasks)
    except asyncio.CancelledError:
        await asyncio.wait(tasks)
        raise
    finally:  # each must be asked for its error, or it is logged as forgotten
        errors = [task.exception() for task in tasks if task.done() and not task.cancelled()]
    for error in errors:
        if error is not None:
            raise error


def _same(rule: Rule, wanted: Mapping[Rule, Validation], live: Mapping[str, Validation]) -> bool:
    return live.get(str(rule.collection), NONE) == wanted[rule]


class _Sent(Enum):
    """What became of a collMod: its collection was not to be had, or a majority is yet to have it."""

    DONE = auto()
    HELD = auto()
    LATE = auto()
