"""What a collMod would wait for: open transactions, and index builds, on collections of the mapping."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from collections.abc import Collection as Some
from typing import Any, NamedTuple

import structlog
from bson import Binary
from pymongo.errors import PyMongoError

from worker.mongo.client import OURS, Client, told_clearly

_log = structlog.get_logger()

_IDLE = 2.0  # seconds


class OpenTransaction(NamedTuple):
    """A transaction that is open in MongoDB. ``session``: its id in hex; ``owner``: whose it is, as MongoDB
    tells users apart, in base64.
    """

    session: str
    owner: str
    seconds: float
    client: str
    prepared: bool

    def __str__(self) -> str:
        return f"session {self.session} of {self.client}, open for {self.seconds:.0f} s"

    @property
    def kill(self) -> str:
        """Return the command of mongosh that ends it, for whoever has the right ``killAnySession``.

        killSessions says ok and ends none but those of its own user, where MongoDB knows users.
        """
        lsid = f'{{id: UUID("{self.session}"), uid: BinData(0, "{self.owner}")}}'
        return f"db.adminCommand({{killAllSessionsByPattern: [{{lsid: {lsid}}}]}})"


class IndexBuild(NamedTuple):
    """An index that is being built."""

    namespace: str


async def open_transactions(client: Client, older: float) -> list[OpenTransaction]:
    """Return the transactions that are open for longer than ``older`` seconds, the oldest first.

    MongoDB does not tell which collections one has touched: a collMod may wait for any of them.
    """
    pipeline: list[dict[str, Any]] = [
        {"$currentOp": {"allUsers": True, "idleSessions": True, "localOps": True}},
        {"$match": {"transaction.parameters.txnNumber": {"$exists": True}}},
    ]
    found: list[OpenTransaction] = []
    with told_clearly():
        async for one in client.admin.aggregate(pipeline):
            told = one["transaction"]
            if told["parameters"].get("autocommit") is not False:
                continue
            seconds = told.get("timeOpenMicros", 0) / 1e6
            if seconds < older:
                continue
            app = one.get("appName") or one.get("clientMetadata", {}).get("application", {}).get("name", "")
            where = " ".join(part for part in (app, one.get("client", "")) if part)
            prepared = "timePreparedMicros" in told
            session, owner = _hex(one["lsid"]["id"]), b64encode(one["lsid"]["uid"]).decode()
            found.append(OpenTransaction(session, owner, seconds, where or "?", prepared))
    return sorted(found, key=lambda one: -one.seconds)


async def end_left(client: Client, role: str, before: float) -> int:
    """End the transactions that a process of ours was killed in; return how many there were.

    MongoDB ends them by itself after 60 s, until which they hold what they wrote, and each collMod. They are
    known by the ``role`` of their client, by their age, of more than ``before`` seconds, which is the
    caller's own: so it ends none of its own; and by having been idle for long. Where the other lives after
    all, it gets an error that passes. Errors as those of `told_clearly`.
    """
    pipeline: list[dict[str, Any]] = [
        {"$currentOp": {"allUsers": False, "idleSessions": True, "localOps": True}},
        {
            "$match": {
                "active": False,
                "transaction.parameters.autocommit": False,
                "transaction.timeOpenMicros": {"$gte": before * 1e6},
                "transaction.timeInactiveMicros": {"$gte": _IDLE * 1e6},
                "appName": f"{OURS}{role}",
            }
        },
    ]
    with told_clearly():
        left = [{"id": Binary.from_uuid(one["lsid"]["id"])} async for one in client.admin.aggregate(pipeline)]
        if left:
            await client.admin.command("killSessions", left)
            _log.warning("ended transactions that a killed process had left open", count=len(left), of=role)
    return len(left)


async def index_builds(client: Client, wanted: Callable[[str], bool]) -> list[IndexBuild]:
    """Return the index builds under way on those collections that are wanted, by namespace."""
    pipeline: list[dict[str, Any]] = [
        {"$currentOp": {"allUsers": True, "localOps": True}},
        {"$match": {"command.createIndexes": {"$exists": True}}},
    ]
    with told_clearly():
        found = [one["ns"] async for one in client.admin.aggregate(pipeline)]
    return [IndexBuild(one) for one in found if wanted(one)]


class TtlIndex(NamedTuple):
    """An index by which MongoDB deletes documents by itself, ``seconds`` after the date at a path."""

    namespace: str
    name: str
    path: str
    seconds: float


async def ttl_indexes(client: Client, namespaces: Some[str]) -> list[TtlIndex]:
    """Return the TTL indexes of these collections; a collection that is not there has none."""
    found: list[TtlIndex] = []
    for namespace in namespaces:
        database, _, name = namespace.partition(".")
        with told_clearly():
            try:
                indexes = await client[database][name].index_information()
            except PyMongoError as error:
                if getattr(error, "code", None) == 26:
                    continue
                raise
        found += [
            TtlIndex(namespace, name, one["key"][0][0], one["expireAfterSeconds"])
            for name, one in indexes.items()
            if "expireAfterSeconds" in one
        ]
    return found


def _hex(session: Any) -> str:
    return session.hex if hasattr(session, "hex") and not callable(session.hex) else bytes(session).hex()
