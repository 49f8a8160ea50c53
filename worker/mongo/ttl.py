"""TTL indexes, for those who do not otherwise need MongoDB."""

from __future__ import annotations

import asyncio
from collections.abc import Collection as Some

import structlog

from worker.errors import ServiceUnavailable, Transient
from worker.mongo.client import Client, WhenAsked
from worker.mongo.in_the_way import TtlIndex, ttl_indexes

_log = structlog.get_logger()
_WITHIN = 10.0  # seconds for one answer


class TtlIndexes:
    """Reads the TTL indexes of real collections."""

    def __init__(self, mongo: WhenAsked) -> None:
        self._mongo = mongo

    async def read(self, namespaces: Some[str]) -> list[TtlIndex]:
        """Return these collections' TTL indexes; none where MongoDB does not let us look, which is logged.

        `Transient` while MongoDB is away.
        """
        try:
            async with asyncio.timeout(_WITHIN):
                return await ttl_indexes(await self._connected(), namespaces)
        except TimeoutError:
            raise Transient(f"MongoDB has not answered for {_WITHIN:.0f} s") from None
        except ServiceUnavailable as error:
            _log.warning("TTL indexes cannot be read: their deletes are taken for rogue", reason=str(error))
            return []

    async def _connected(self) -> Client:
        try:
            return await self._mongo.client()
        except ServiceUnavailable as error:
            raise Transient(str(error)) from None
