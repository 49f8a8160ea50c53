"""The fence in MongoDB: validators that refuse tenants' writes (PROTOCOL.md, MongoDB's fence).

A validator is computed from the fence documents of all tenants, under a lock for each collection, set by one
collMod that a majority has, and read back. An application's own validator is kept beside ours where it was
strict and an error; otherwise it is set aside while any tenant is refused. It is put back when none is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Any
from uuid import UUID, uuid4

import bson
import structlog
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions
from pymongo import ReadPreference, ReplaceOne, ReturnDocument, WriteConcern
from pymongo.errors import DuplicateKeyError, OperationFailure, PyMongoError

from topics import Collection
from worker.mapping import Mapping as MappingFile
from worker.mapping import row_id
from worker.mapping.sources import named_tenant
from worker.mongo.client import Client, describe
from worker.mongo.fence_documents import DATABASE, MAJORITY_MS, FenceDocuments, refused
from worker.mongo.validation import (
    ACTION,
    LEVEL,
    NONE,
    OURS,
    Rule,
    Validation,
    ours,
    own_of,
    refuses,
    undecoded,
    with_ours,
)

_log = structlog.get_logger()

LOCKS, SET_ASIDE = "fence_lock", "fence_set_aside"
"""Collections of ours: the lock, and applications' validators while ours are in their place."""

_MARGIN = 1.0  # seconds for which the lock is held beyond what a collMod of it may take
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
_ASK_EVERY = 0.003
_FIRST_PATIENCE = 0.02  # seconds that a collMod waits for its collection; doubled each time
_HELD = "an open transaction, or many writes, hold it"
_NO_MAJORITY = "no majority of the replica set answers"
_REST = 2  # times as long writers go on before the next one
_NOT_FOUND, _EXISTS, _TIMED_OUT, _KILLED, _INDEX_BUILD = 26, 48, 50, 11601, 12587
_CODEC: CodecOptions[dict[str, Any]] = CodecOptions(
    tz_aware=True, uuid_representation=UuidRepresentation.STANDARD
)


class InTheWay(Exception):
    """A collMod did not get its collection in time, or an index is being built there. Nothing changed."""

    def __init__(self, namespace: str, why: str) -> None:
        super().__init__(f"{namespace}: {why}")
        self.namespace, self.why = namespace, why


class Validators:
    """The validators of a mapping's real collections."""

    def __init__(self, client: Client, mapping: MappingFile, migration: str, holder: str) -> None:
        self._client, self._mapping, self._migration, self._holder = client, mapping, migration, holder
        self._fences = FenceDocuments(client, migration)
        majority = WriteConcern("majority", wtimeout=MAJORITY_MS)
        ours = client[DATABASE]
        self._locks: Any = ours.get_collection(LOCKS, write_concern=majority)
        self._aside: Any = ours.get_collection(SET_ASIDE, write_concern=majority)
        self._patience: dict[str, float] = {}
        """Seconds that the next collMod waits for a collection which the last one did not get."""

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

    async def heal(self, within: float) -> None:
        """Make all validators what the fence documents say. `InTheWay` as of `fence`."""
        await self._set(within, lambda rule: False)

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
            value = told.constant if told.constant is not None else source.tenant
            only = row_id(named_tenant(value) if isinstance(value, str) else value)
            rules.append(Rule(Collection.parse(namespace), None, only))
        return rules

    async def _set(self, within: float, always: Callable[[Rule], bool], *, nobody: bool = False) -> None:
        """Set all validators to what the fence documents say (D5), and read them back.

        ``always``: whether a collMod is sent though nothing differs, for then a majority has what it sets.
        """
        until = time.monotonic() + within
        async with self._locked(within) as lock:
            found, aside, live = await asyncio.gather(self._fences.read(), self._set_aside(), self._live())
            fences = [] if nobody else refused(found.values())
            wanted: dict[Rule, Validation] = {}
            keep: dict[str, Validation] = {}
            forget: list[str] = []
            for rule in self._rules(live):
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
            while todo:
                if min(until, lock.until) <= time.monotonic():
                    raise InTheWay(str(todo[0].collection), "it was changed by others for too long")
                lock.answered = False
                await _all(
                    self._collmod(rule.collection, wanted[rule], lock, until, str(rule.collection) in live)
                    for rule in todo
                )
                lock.answered = True
                live = await self._live()
                todo = [rule for rule in wanted if not _same(rule, wanted, live)]
            if forget:
                await self._aside.delete_many({"_id": {"$in": [self._id(one) for one in forget]}})

    async def _collmod(
        self, collection: Collection, wanted: Validation, lock: _Lock, until: float, there: bool
    ) -> None:
        """Send one, which waits but a moment for the collection, until it gets it.

        All writers wait behind it. When they hold the application's last connections, then so do the
        transactions that it waits for, and none of them comes to its end before it gives up. Where they last
        longer, it waits longer each time, until it has waited for as long as it may; then it begins anew.
        """
        name, late = str(collection), False
        most = until - time.monotonic()
        while (left := min(until, lock.until) - time.monotonic()) > 0:
            patience = self._patience.get(name, _FIRST_PATIENCE)
            rest = _REST * patience
            waits = left if late or patience + rest >= left else patience
            command = {
                "collMod" if there or late else "create": collection.name,
                "validator": dict(wanted.validator),
                "validationLevel": wanted.level,
                "validationAction": wanted.action,
                "maxTimeMS": max(1, round(waits * 1000)),
                "comment": lock.attempt,
                "writeConcern": {"w": "majority", "wtimeout": MAJORITY_MS},
            }
            outcome = await self._sent(collection, command)
            if outcome is _Sent.DONE:
                self._patience.pop(name, None)
                return
            if outcome is _Sent.LATE:  # it is set: the same one again waits for a majority only
                late = True
                continue
            self._patience[name] = patience * 2 if patience < most else _FIRST_PATIENCE
            await asyncio.sleep(max(0.0, min(rest, until - time.monotonic())))
        raise InTheWay(name, _NO_MAJORITY if late else _HELD)

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

    @asynccontextmanager
    async def _locked(self, within: float) -> AsyncIterator[_Lock]:
        """Hold the lock of this migration's validators. What a predecessor had sent is ended first (D5)."""
        attempt, until = f"{OURS} {uuid4()}", time.monotonic() + within
        before = await self._lock(attempt, until, within + _MARGIN)
        lock = _Lock(attempt, time.monotonic() + within + _MARGIN / 2)
        try:
            if before:
                await self._end(before, until)
            yield lock
        finally:
            lock.until = 0.0  # whatever is yet to be sent, by a task that nobody waits for, is not
            # A collMod without an answer may be under way still: then the next one ends it by its name.
            left = {} if lock.answered else {"attempt": attempt}
            try:
                await self._locks.update_one(
                    {"_id": self._migration, "attempt": attempt},
                    [{"$set": {"until": "$$NOW", "attempt": None, **left}}],
                )
            except PyMongoError as error:  # it runs out by itself
                _log.warning("the fences' lock was not given back", error=describe(error))

    async def _lock(self, attempt: str, until: float, seconds: float) -> str | None:
        """Take the lock for some seconds; return the attempt of whoever had it and did not give it back."""
        new = {
            "attempt": attempt,
            "holder": self._holder,
            "until": {"$add": ["$$NOW", round(seconds * 1000)]},
        }
        while True:
            before = await self._locks.find_one_and_update(
                {"_id": self._migration, "$expr": {"$lte": ["$until", "$$NOW"]}},
                [{"$set": new}],
                return_document=ReturnDocument.BEFORE,
            )
            if before is not None:
                return before.get("attempt")
            try:
                await self._locks.insert_one({"_id": self._migration, "until": _LONG_AGO})
            except DuplicateKeyError:
                if time.monotonic() > until:
                    raise InTheWay("all collections", "another move holds the fences' lock") from None
                await asyncio.sleep(_ASK_EVERY)

    async def _end(self, attempt: str, until: float) -> None:
        """End what another has sent under an attempt's name; return when the primary shows none."""
        while True:
            pipeline = [
                {"$currentOp": {"allUsers": True, "localOps": True}},
                {"$match": {"command.comment": attempt}},
            ]
            sent = [one async for one in self._client.admin.aggregate(pipeline)]
            if not sent:
                return
            for one in sent:
                await self._client.admin.command({"killOp": 1, "op": one["opid"]})
            if time.monotonic() > until:
                raise InTheWay("?", "a collMod of another controller does not end")
            await asyncio.sleep(_ASK_EVERY)

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


@dataclass(slots=True)
class _Lock:
    attempt: str
    until: float
    """By this process's monotonic clock: nothing is sent that could take effect later."""
    answered: bool = True
