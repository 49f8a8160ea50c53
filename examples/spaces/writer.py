"""A live application: writes to its MongoDB at a steady rate, whatever happens to the server."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random, SystemRandom
from typing import Any
from uuid import UUID

from pymongo.errors import ConnectionFailure, PyMongoError, WTimeoutError

from examples.spaces.known import sample_all
from examples.spaces.ledger import Ledger
from examples.spaces.plans import KINDS, Planner
from examples.spaces.shapes import CODEC, Document
from examples.spaces.steps import Conflict, Do, Executor, Refused, Step

_SAMPLE = 2000
_AT_ONCE = 64
_REFUSED_PAUSE = 1.0
_PASSING_LABELS = ("RetryableWriteError", "TransientTransactionError", "UnknownTransactionCommitResult")
# Shutting down, stepping down, or in each other's way: the same try may succeed later.
_PASSING_CODES = {6, 7, 24, 89, 91, 112, 189, 251, 9001, 10107, 11600, 11602, 13435, 13436}


@dataclass(slots=True)
class Counters:
    """What a writer has done. ``changes`` counts documents, the rest counts operations."""

    changes: int = 0
    by_kind: Counter[str] = field(default_factory=Counter)
    retries: int = 0
    conflicts: int = 0
    refused: int = 0
    unknown: int = 0
    idle: int = 0


class Writer:
    """Inserts, updates, deletes and transactions with w=majority, ``rate`` changed documents a second.

    The loop is open: what is due is started whether or not earlier writes have been answered (64 at once at
    most), so after a stall it catches up. Every write is repeated until its outcome is known. No email is
    used twice.

    ``allows`` says whether a tenant may be written now; ``on_write`` is told the tenant and the seconds from
    when each write was due until it was acknowledged. With a ``ledger`` the last acknowledged state of every
    written document is kept.
    """

    def __init__(
        self,
        client: Any,
        database: str,
        rate: float,
        seed: int = 0,
        *,
        ledger: Ledger | None = None,
        allows: Callable[[UUID], bool] = lambda tenant: True,
        on_write: Callable[[UUID, float], None] | None = None,
        patience: float = 60.0,
    ) -> None:
        self.counters = Counters()
        self.ledger = ledger
        self._database = client.get_database(database, codec_options=CODEC)
        self._executor = Executor(client, database)
        self._rate = rate
        self._rng = Random(seed)
        self._allowed = allows
        self._on_write = on_write
        self._patience = patience
        self._refused_until: dict[UUID, float] = {}
        # Ids are never seeded: a second writer with the same seed must not make the same ones.
        self._planner = Planner(self._rng, SystemRandom(), self._allows)
        self._give_up_at: float | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Write until ``stop`` is set, then wait for what is under way.

        What has no answer ``patience`` seconds after ``stop`` is given up and counted as unknown.
        """
        names = ("tenants", "users", "passwords", "forms", "pages", "leads")
        self._planner.learn(await sample_all(self._database, names, _SAMPLE))
        slots = asyncio.Semaphore(_AT_ONCE)
        kinds, weights = list(KINDS), list(KINDS.values())
        begun, issued = time.monotonic(), 0
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch(stop))
            while not stop.is_set():
                due = begun + issued / self._rate
                if (wait := due - time.monotonic()) > 0:
                    await asyncio.sleep(min(wait, 0.1))
                    continue
                await slots.acquire()
                kind = self._rng.choices(kinds, weights)[0]
                steps = self._planner.plan(kind)
                issued += max(len(steps), 1)
                group.create_task(self._one(kind, steps, due, slots))

    async def _one(self, kind: str, steps: list[Step], due: float, slots: asyncio.Semaphore) -> None:
        try:
            if not steps:
                self.counters.idle += 1
                return
            documents = await self._until_known(steps)
        except Refused:
            self.counters.refused += 1
            self._refused_until[steps[0].known.tenant] = time.monotonic() + _REFUSED_PAUSE
            self._planner.release(steps)
        except Conflict:
            self.counters.conflicts += 1
            await self._look_again(steps)
        except _GivenUp:
            self._lose(steps)
        else:
            self._acknowledged(kind, steps, documents, due)
        finally:
            slots.release()

    async def _until_known(self, steps: Sequence[Step]) -> list[Document | None]:
        pause, again = 0.02, False
        while True:
            try:
                return await self._executor.run(steps, again)
            except PyMongoError as error:
                if not _passes(error):
                    raise
                again = True
                self.counters.retries += 1
            if self._give_up_at is not None and time.monotonic() > self._give_up_at:
                raise _GivenUp
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.5)

    async def _look_again(self, steps: Sequence[Step]) -> None:
        """Learn the present state of documents that somebody else has changed; forget those that are gone."""
        for step in {id(step.known): step for step in reversed(steps)}.values():  # each document's first
            try:
                if step.do is not Do.INSERT and await self._executor.refresh(step.known):
                    self._planner.release([step])
            except PyMongoError as error:
                if not _passes(error):
                    raise

    async def _watch(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._give_up_at = time.monotonic() + self._patience

    def _acknowledged(
        self, kind: str, steps: Sequence[Step], documents: Sequence[Document | None], due: float
    ) -> None:
        self.counters.changes += len(steps)
        self.counters.by_kind[kind] += 1
        if self._on_write:
            self._on_write(steps[0].known.tenant, time.monotonic() - due)
        if self.ledger is not None:
            for step, document in zip(steps, documents, strict=True):
                self.ledger.record(step.collection, step.id, document)
        self._planner.settle(steps, documents)

    def _lose(self, steps: Sequence[Step]) -> None:
        self.counters.unknown += 1
        if self.ledger is not None:
            for step in steps:
                self.ledger.record_unknown(step.collection, step.id)

    def _allows(self, tenant: UUID) -> bool:
        return self._refused_until.get(tenant, 0.0) < time.monotonic() and self._allowed(tenant)


class _GivenUp(Exception):
    """The writer was stopped, and the server has not answered for too long."""


def _passes(error: PyMongoError) -> bool:
    """Tell whether a later try may succeed: the server is away, changing, or busy with another's write."""
    if isinstance(error, (ConnectionFailure, WTimeoutError)):
        return True
    if any(error.has_error_label(label) for label in _PASSING_LABELS):
        return True
    return getattr(error, "code", None) in _PASSING_CODES
