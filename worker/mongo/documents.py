"""Documents by id, for those who do not otherwise need MongoDB."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from bson import Timestamp
from bson.errors import BSONError
from pymongo.errors import OperationFailure, PyMongoError

from topics import Collection
from worker.errors import Fatal, ServiceUnavailable, Transient
from worker.mongo.client import REFUSED, WhenAsked, describe, transient
from worker.mongo.lookup import Found, look_up

_WITHIN = 30.0  # seconds for one answer


class Refused(Exception):
    """MongoDB does not answer what was asked, however often; the text says why."""


class Documents:
    """Reads documents as a majority has them, never older than asked for (docs/protocol.md C5)."""

    def __init__(self, mongo: WhenAsked) -> None:
        self._mongo = mongo

    async def read(self, collection: Collection, ids: Mapping[bytes, Any], not_before: Timestamp) -> Found:
        """Return the documents that exist, as `look_up` does; ``ids`` maps document keys to ids.

        `Transient` while MongoDB is away, `Refused` for what was asked, `Fatal` for who asked.
        """
        try:
            async with asyncio.timeout(_WITHIN):
                return await look_up(await self._mongo.client(), collection, ids, not_before)
        except TimeoutError:
            raise Transient(f"MongoDB has not answered for {_WITHIN:.0f} s") from None
        except ServiceUnavailable as error:
            raise Transient(str(error)) from None
        except (PyMongoError, BSONError) as error:
            told = describe(error) if isinstance(error, PyMongoError) else type(error).__name__
            if isinstance(error, PyMongoError) and transient(error):
                raise Transient(f"MongoDB does not answer ({told})") from None
            if isinstance(error, OperationFailure) and error.code in REFUSED:
                raise Fatal(
                    f"MongoDB does not let apply read {collection} ({told})",
                    remedy="allow the user of CROSSFADE_MONGO_URI to read it",
                ) from None
            raise Refused(f"MongoDB does not read the document ({told})") from None
