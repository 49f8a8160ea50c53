"""Watches how long MongoDB will keep the place of the saved token, and warns before it is too late."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from worker import metrics
from worker.mongo.client import Client
from worker.mongo.oplog import OplogUnknown, forecast, read_oplog

_log = structlog.get_logger()

_EVERY = 10.0  # seconds


class OplogWatch:
    """``saved`` gives the saved token's clusterTime; ``margin`` is the share of the window to warn at."""

    def __init__(self, client: Client, saved: Callable[[], int], margin: float) -> None:
        self._client, self._saved, self._margin = client, saved, margin
        self._short = False
        self._told_unknown = False

    async def run(self) -> None:
        """Look now and then, until cancelled. Where MongoDB does not tell, say so once."""
        while True:
            try:
                await self._look()
            except OplogUnknown as error:
                metrics.OPLOG_LEFT.until({})
                metrics.OPLOG_WINDOW.set_to({})
                if not self._told_unknown:
                    _log.info("how long publish may stand still is not known", reason=str(error))
                self._told_unknown = True
            await asyncio.sleep(_EVERY)

    async def _look(self) -> None:
        oplog = await read_oplog(self._client)
        told = forecast(oplog, self._saved(), time.time(), self._margin)
        metrics.OPLOG_WINDOW.set_to({(): oplog.window})
        metrics.OPLOG_LEFT.until({(): told.drops_at})
        if told.short and not self._short:
            _log.warning(
                "MongoDB's oplog will soon drop the place of the saved token; enlarge it, or find what holds "
                "publish up",
                left_seconds=round(told.left),
                window_seconds=round(oplog.window),
            )
        elif self._short and not told.short:
            _log.info("MongoDB keeps the place of the saved token for long enough again")
        self._short = told.short
