"""The connection to MongoDB, with every way it can fail at start told in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.raw_bson import RawBSONDocument
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import ReadPreference
from pymongo.errors import (
    BulkWriteError,
    ConfigurationError,
    ConnectionFailure,
    InvalidURI,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)

from worker.errors import ServiceUnavailable, Transient

Client = AsyncIOMotorClient[dict[str, Any]]

# Documents stay undecoded; dates that Python cannot hold do not fail their document.
RAW: CodecOptions[RawBSONDocument] = CodecOptions(
    document_class=RawBSONDocument,
    tz_aware=True,
    uuid_representation=UuidRepresentation.STANDARD,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
)
# The server's codes for: another primary, a shutdown, a lost or killed cursor, an operation cut short, a
# snapshot that is gone. What asks again gets an answer later.
_TRANSIENT = frozenset(
    {6, 7, 43, 50, 63, 64, 89, 91, 112, 133, 134, 136, 150, 189, 202, 234, 237, 239, 246, 262, 290}
    | {9001, 10107, 11600, 11601, 11602, 13388, 13435, 13436}
)
FAULTS = (PyMongoError,)
"""What the driver raises, whatever is wrong; `describe` tells it."""
REFUSED = frozenset({13, 18})
"""Codes of a user that may not, or is not who it says (Unauthorized, AuthenticationFailed)."""


_SILENT = 5.0  # seconds
OURS = "crossfade "
"""With what our processes' names begin in MongoDB."""


def unasked(uri: str, role: str, *, within: float = 10) -> Client:
    """Return a client that has asked nobody yet; `ServiceUnavailable` when there can be none of this string.

    It reads at the primary where nothing else is asked for.

    ``within``: seconds in which a server must be found whenever one is asked, and, where that is shorter than
    ours, for which one may fall silent.
    """
    silent = round(min(_SILENT, within) * 1000)
    try:
        return AsyncIOMotorClient(
            uri,
            uuidRepresentation="standard",
            tz_aware=True,
            # Whatever the string says: what decides must not be behind, and a transaction reads nowhere else.
            read_preference=ReadPreference.PRIMARY,
            appname=f"{OURS}{role}",
            serverSelectionTimeoutMS=round(within * 1000),
            # A server that falls silent, because it is frozen or its network is gone, is given up after the
            # sum of these, and with it every command that waits for its answer. By default that is 30 s.
            heartbeatFrequencyMS=silent,
            connectTimeoutMS=silent,
        )
    except (ConfigurationError, InvalidURI, ValueError):
        raise ServiceUnavailable(
            "CROSSFADE_MONGO_URI is no MongoDB connection string", remedy="write mongodb://host:port/..."
        ) from None


class WhenAsked:
    """A client for those who do not otherwise need MongoDB: connected when it is first asked for."""

    def __init__(self, uri: str, role: str) -> None:
        self._uri, self._role = uri, role
        self._client: Client | None = None

    async def client(self) -> Client:
        """Return the client. `ServiceUnavailable` while there is none to be had."""
        if self._client is None:
            self._client = await connect(self._uri, self._role)
        return self._client

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._client is not None:
            self._client.close()


async def connect(uri: str, role: str, *, within: float = 10) -> Client:
    """Return a client of a replica set or mongos; `ServiceUnavailable` says why there is none.

    ``within``: as of `unasked`, and the first question is asked now.
    """
    where, client = _place(uri), unasked(uri, role, within=within)
    try:
        hello = await client.admin.command("hello")
        await client.admin.command({"listDatabases": 1, "nameOnly": True, "filter": {"name": "admin"}})
    except PyMongoError as error:
        refused = _refused(where, client, error)
        client.close()
        raise refused from None
    if "setName" not in hello and hello.get("msg") != "isdbgrid":
        client.close()
        raise ServiceUnavailable(
            f"MongoDB at {where} is not a replica set, so it has no change stream",
            remedy="start mongod with --replSet and run rs.initiate()",
        )
    return client


def describe(error: PyMongoError) -> str:
    """Return an error without any value of a document: its kind, and the server's name for it."""
    if isinstance(error, BulkWriteError):
        return " ".join(map(str, [type(error).__name__, *sorted(set(_codes(error)))]))
    if isinstance(error, OperationFailure):
        name = (error.details or {}).get("codeName", "")
        return f"{type(error).__name__} {error.code} {name}".strip()
    return type(error).__name__


def _codes(error: BulkWriteError) -> list[int]:
    """Return the codes of all that went wrong: its own is always the same."""
    details: Any = error.details
    return [one.get("code", 0) for one in (*details["writeErrors"], *details["writeConcernErrors"])]


def transient(error: PyMongoError) -> bool:
    """Return whether the same command may succeed later."""
    if isinstance(error, BulkWriteError):
        return (codes := _codes(error)) != [] and _TRANSIENT.issuperset(codes)
    if isinstance(error, OperationFailure):
        return error.code in _TRANSIENT or error.has_error_label("ResumableChangeStreamError")
    return isinstance(error, ConnectionFailure)


@contextmanager
def told_clearly() -> Iterator[None]:
    """Turn what MongoDB may say to what is not its stream or copy into one line.

    `Transient` where the same may succeed later, else `ServiceUnavailable`.
    """
    try:
        yield
    except PyMongoError as error:
        if transient(error):
            raise Transient(f"MongoDB does not answer ({describe(error)})", remedy="try again") from None
        raise ServiceUnavailable(
            f"MongoDB refuses ({describe(error)})",
            remedy="let the user of CROSSFADE_MONGO_URI read what is mapped, and write database crossfade",
        ) from None


def _refused(where: str, client: Client, error: PyMongoError) -> ServiceUnavailable:
    if isinstance(error, OperationFailure) and error.code in REFUSED:
        return ServiceUnavailable(
            f"MongoDB at {where} refuses the user or password", remedy="check CROSSFADE_MONGO_URI"
        )
    topology: Any = client.topology_description  # a property, which motor's types take for a method
    servers = topology.server_descriptions().values()
    if isinstance(error, ServerSelectionTimeoutError):
        # The driver forgets a member of another set, or keeps it with this error when it knows no other.
        if all(isinstance(server.error, ConfigurationError) for server in servers):
            return ServiceUnavailable(
                f"MongoDB at {where} is no member of the replica set that CROSSFADE_MONGO_URI names",
                remedy="mend replicaSet=... in it; rs.status() tells the set's name",
            )
        if any(server.is_server_type_known for server in servers):
            return ServiceUnavailable(
                f"MongoDB at {where} has no primary",
                remedy="wait for its election, or start members until a majority runs",
            )
    return ServiceUnavailable(
        f"MongoDB at {where} cannot be reached ({describe(error)})",
        remedy="start it, or mend CROSSFADE_MONGO_URI",
    )


def _place(uri: str) -> str:
    parts = urlsplit(uri)
    if "@" in parts.path + parts.query + parts.fragment:
        return "?"  # an unescaped / or # in the password ends the host early: it is no host
    return parts.netloc.rpartition("@")[2] or "?"
