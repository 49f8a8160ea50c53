"""Repair by itself: of what has been wrong for some time, within a limit, else a person must look first."""

from __future__ import annotations

import structlog

from worker import metrics
from worker.postgres.mismatches import Which
from worker.repair.repair import Repair

_log = structlog.get_logger()
_AGAIN_AFTER = 60.0  # seconds
_TIMES = 5
"""Repairs of one document, after which it is left for a person."""


class SelfRepair:
    """Repairs mismatches that are older than ``after`` seconds, each at most five times, a minute apart."""

    def __init__(self, repair: Repair, after: float) -> None:
        self._repair, self._after = repair, after
        self._stopped = False

    async def run(self) -> None:
        """Send what is due; nothing while there is more wrong than the limit allows."""
        due = Which(seen_for=self._after, not_repaired_for=_AGAIN_AFTER, fewer_repairs=_TIMES)
        outlook = await self._repair.outlook(due._replace(seen_for=None), by_itself=True)
        if outlook.too_many != self._stopped:
            self._stopped = outlook.too_many
            tell = _log.error if self._stopped else _log.info
            tell(
                "too much is wrong: repair stopped" if self._stopped else "repair goes on",
                mismatches=outlook.mismatches,
                repaired_within_a_day=outlook.before,
                limit=outlook.limit,
            )
        metrics.REPAIR_STOPPED.set(self._stopped)
        if self._stopped or not outlook.mismatches:
            return
        sent = await self._repair.run(due, outlook.allowed, by_itself=True)
        metrics.REPAIRS.inc(sent.documents + sent.absences)
        if sent.documents or sent.absences or sent.lost:
            _log.warning("repaired", documents=sent.documents, absences=sent.absences, lost=sent.lost)
