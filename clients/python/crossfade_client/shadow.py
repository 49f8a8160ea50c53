"""Shadow reads: the same read on the other side, compared; what an operator wants to see before a move."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from crossfade_client.phases import Reading, Side, other
from crossfade_client.reports import Report, Reports

_AT_ONCE = 4  # beyond that they are left out: a shadow must not become a load
_ABSENT = object()


class Difference(NamedTuple):
    """What differs of a tenant's reads: (id, path) pairs, never a value."""

    tenant: UUID
    phase: str
    epoch: int
    places: Sequence[tuple[str, str]]


Compare = Callable[[Any, Any], Sequence[tuple[str, str]]]
ShadowUnit = Callable[[Side], Awaitable[Any]]


class _Read(Protocol):
    async def __call__(self, tenant: UUID, *, max_staleness: float | None = None) -> Reading: ...


@dataclass
class Shadows:
    """Counts of the reads that were compared. ``settle``: seconds between the two looks at a difference.

    ``equal`` and ``different`` are calls that were compared, ``unsettled`` those that differed at first and
    not again, or whose tenant moved; ``failed``: the other side's read or the comparison raised;
    ``left_out``: too many at once. ``on_difference`` is called for each one that differs.
    """

    on_difference: Callable[[Difference], None] | None = None
    settle: float = 2.0
    equal: int = 0
    different: int = 0
    unsettled: int = 0
    failed: int = 0
    left_out: int = 0
    _untold: Reports = field(default_factory=Reports)
    _running: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])

    def maybe(
        self, share: float, reading: Reading, result: Any, unit: ShadowUnit, compare: Compare, read: _Read
    ) -> None:
        """Compare this read in the background, if the dice say so."""
        if random.random() >= share:  # noqa: S311 - a sample, nothing secret
            return
        if len(self._running) >= _AT_ONCE:
            self._count(reading.tenant, "left_out")
            return
        task = asyncio.create_task(self._compare(reading, result, unit, compare, read))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def close(self) -> None:
        """Give up what is under way."""
        for task in (running := list(self._running)):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _compare(
        self, reading: Reading, result: Any, unit: ShadowUnit, compare: Compare, read: _Read
    ) -> None:
        here = Side(reading.name, reading.tenant, reading.phase, reading.epoch)
        there = Side(other(reading.name), reading.tenant, reading.phase, reading.epoch)
        try:
            first = set(compare(result, await unit(there)))
            if not first:
                self._count(reading.tenant, "equal")
                return
            # A write may have been on its way: what still differs at the same places, later, is no lag.
            await asyncio.sleep(self.settle)
            again = [place for place in compare(await unit(here), await unit(there)) if place in first]
            now = await read(reading.tenant)
            if not again or (now.phase, now.epoch) != (reading.phase, reading.epoch):
                self._count(reading.tenant, "unsettled")
                return
            self._count(reading.tenant, "different", again)
            if self.on_difference is not None:
                self.on_difference(Difference(reading.tenant, reading.phase, reading.epoch, again))
        except Exception:  # a shadow's errors are counted, and hurt nobody
            self._count(reading.tenant, "failed")

    def _count(self, tenant: UUID, outcome: str, places: Sequence[tuple[str, str]] = ()) -> None:
        setattr(self, outcome, getattr(self, outcome) + 1)
        self._untold.add(tenant, {outcome: 1}, places)

    async def report(self, tell: Callable[[str], Awaitable[None]]) -> None:
        """Tell what was found since the last time; what ``tell`` raises is raised, and nothing is lost."""
        reports: list[Report] = self._untold.take()
        while reports:
            try:
                await tell(str(reports[0]))
            except BaseException:
                self._untold.put_back(reports)
                raise
            del reports[0]


def differing_paths(one: Any, two: Any) -> list[tuple[str, str]]:
    """Return (id, path) of every difference between two documents, or two lists of documents.

    A document is a mapping; its id is its ``_id`` or ``id``. Lists of documents are paired by id, in any
    order.
    """
    ours, theirs = _by_id(one), _by_id(two)
    places: list[tuple[str, str]] = []
    for key in (*ours, *(key for key in theirs if key not in ours)):
        places += [(key, path) for path in _paths(ours.get(key, _ABSENT), theirs.get(key, _ABSENT), "")]
    return places


def _by_id(result: Any) -> dict[str, Any]:
    if (document := _document(result)) is not None:
        return {_id(document): document}
    if isinstance(result, Sequence) and not isinstance(result, str | bytes):
        documents = [_document(one) or {"": one} for one in result]
        return {
            _id(one) if "_id" in one or "id" in one else str(place): one
            for place, one in enumerate(documents)
        }
    return {} if result is None else {"": result}


def _document(one: Any) -> dict[Any, Any] | None:
    return dict(one) if hasattr(one, "keys") else None  # a mapping, or a driver's row


def _id(document: Mapping[Any, Any]) -> str:
    return str(document.get("_id", document.get("id", "")))


def _paths(one: Any, two: Any, at: str) -> Iterator[str]:
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        for name in (*one, *(name for name in two if name not in one)):
            yield from _paths(
                one.get(name, _ABSENT), two.get(name, _ABSENT), f"{at}.{name}" if at else str(name)
            )
    elif one is _ABSENT or two is _ABSENT or one != two:
        yield at
