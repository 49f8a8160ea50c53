"""What holds the copy back: a pause, apply's lag, MongoDB's replication lag, a fixed rate.

All of it can change while the copy runs: it is read from PostgreSQL twice a second, and what holds now is
told there, for `status`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import structlog

from worker.clock import SYSTEM_CLOCK, Clock
from worker.mongo.client import Client
from worker.mongo.heartbeat import Heartbeat
from worker.mongo.replication_lag import ReplicationLag, replication_lag
from worker.postgres import copy_control
from worker.postgres.checkpoints import Checkpoints
from worker.postgres.copy_control import Control
from worker.publish.backlog import Backlog

_log = structlog.get_logger()

LOOK_EVERY = 0.5  # seconds
_ASK_MONGODB_EVERY = 2.0
_TELL_EVERY = 1.0
_STEP = 0.05  # seconds between looks of who waits
_HELD_FOR = 2.5  # seconds that a hold counts as now, for a rate holds again and again
_SHARE = 0.25  # seconds of a rate that are read at once
_CREDIT = 0.25  # seconds of a rate that may be made up for


class Hold(StrEnum):
    """What holds the copy. The first that does is told."""

    PAUSE = "pause"
    APPLY_LAG = "apply lag"
    REPLICATION_LAG = "replication lag"
    RATE = "rate"


class Paused(Exception):
    """The collection's copy is paused: it goes on from its last document when it is resumed."""


@dataclass(slots=True)
class Throttle:
    """Lets the copy read, or wait. ``defaults``: limits by name where PostgreSQL has none; 0 is none."""

    client: Client
    checkpoints: Checkpoints
    publisher: str
    topics: Sequence[str]
    copy_topics: Sequence[str]
    heartbeat: Heartbeat
    defaults: Mapping[str, float]
    enabled: bool
    clock: Clock = SYSTEM_CLOCK
    backlog: Backlog = field(default_factory=Backlog)
    _control: Control | None = None
    _replication: ReplicationLag = field(default_factory=lambda: ReplicationLag(None))
    _asked_at: float = -math.inf
    _told_at: float = -math.inf
    _told: Hold | None = None
    _held: dict[Hold, float] = field(default_factory=dict)
    _credit: float = 0.0  # documents that may be read at once; below 0, some have been read already
    _credited_at: float = 0.0

    async def run(self) -> None:
        """Look at what holds, and tell it, until cancelled."""
        while True:
            await self.look()
            await self._tell()
            await self.clock.sleep(LOOK_EVERY)

    async def look(self) -> None:
        """Read what holds now."""
        self._control = await self.checkpoints.do(
            lambda connection: copy_control.read(connection, self.topics, self.copy_topics)
        )
        now = self.clock.monotonic()
        self.backlog.look(self._control.offsets, now)
        if self._limit("max_replication_lag") and now >= self._asked_at + _ASK_MONGODB_EVERY:
            self._asked_at = now
            before, self._replication = self._replication, await replication_lag(self.client)
            if self._replication.unknown and self._replication.unknown != before.unknown:
                _log.warning(
                    "replication lag is unknown, and does not hold", reason=self._replication.unknown
                )

    async def turn(self, namespace: str) -> None:
        """Return when the collection's copy may read; `Paused` when it may not for now."""
        if self._control is None:
            await self.look()
        while (hold := self._holds(namespace)) is not None:
            self.note(hold)
            if hold is Hold.PAUSE:
                raise Paused
            await self.clock.sleep(_STEP)

    def most(self, chunk: int) -> int:
        """Return how many documents of a chunk may be read at once, so that a rate is even."""
        rate = self._limit("rate")
        return max(1, min(chunk, int(rate * _SHARE))) if rate else chunk

    def took(self, documents: int) -> None:
        """Count what was read."""
        self._refill()
        self._credit -= documents

    def note(self, hold: Hold) -> None:
        """Remember that something held the copy just now."""
        self._held[hold] = self.clock.monotonic()

    def _holds(self, namespace: str) -> Hold | None:
        control = self._control
        if control is not None and namespace in control.paused:
            return Hold.PAUSE
        if self._beyond(self._coming(), self._limit("max_lag") / 2):
            return Hold.APPLY_LAG
        if self._beyond(self._replication.seconds, self._limit("max_replication_lag")):
            return Hold.REPLICATION_LAG
        self._refill()
        return Hold.RATE if self._credit < 0 else None

    def _lag(self) -> float | None:
        """Return the seconds that apply is behind, told by our own clock alone."""
        if self._control is None or self._control.applied is None:
            return None
        return self.heartbeat.waits(self._control.applied)

    def _coming(self) -> float | None:
        """Return the lag that is, or the greater one that what apply has been given will make of it.

        Half the limit is for what neither shows yet.
        """
        lag = self._lag()
        return None if lag is None else max(lag, self.backlog.seconds)

    def _beyond(self, lag: float | None, limit: float) -> bool:
        return bool(limit) and lag is not None and lag > limit

    def _limit(self, name: str) -> float:
        given = self._control.limits[name] if self._control is not None else None
        return self.defaults[name] if given is None else given

    def _refill(self) -> None:
        now, rate = self.clock.monotonic(), self._limit("rate") or math.inf
        elapsed, self._credited_at = now - self._credited_at, now
        self._credit = min(self._credit + rate * elapsed, rate * _CREDIT)

    async def _tell(self) -> None:
        now = self.clock.monotonic()
        holds = [hold for hold in Hold if self._held.get(hold, -math.inf) > now - _HELD_FOR]
        hold = holds[0] if holds else None
        if hold == self._told and now < self._told_at + _TELL_EVERY:
            return
        if hold != self._told and hold not in (Hold.RATE, None):
            _log.info("copy held", by=str(hold))
        self._told, self._told_at = hold, now
        standing = self._standing(hold)
        await self.checkpoints.do(lambda connection: copy_control.tell(connection, self.publisher, standing))

    def _standing(self, hold: Hold | None) -> dict[str, Any]:
        asked = bool(self._limit("max_replication_lag"))
        return {
            "enabled": self.enabled,
            "held_by": hold,
            **{name: self._limit(name) or None for name in copy_control.LIMITS},
            "lag": self._lag(),
            "replication_lag": self._replication.seconds if asked else None,
            "replication_lag_unknown": self._replication.unknown if asked else None,
        }
