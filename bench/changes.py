"""Which pages a benchmark's changes touch. Pages are numbered; the live ones are a range that moves up.

Inserts take the next number, deletes the lowest, and updates only numbers that no delete of the same stage
reaches. So an update never finds its document gone, and as many events come out as changes went in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from bson import ObjectId

Kind = Literal["update", "insert", "delete"]
CYCLE: tuple[Kind, ...] = (
    *("update", "insert", "update", "update", "insert"),
    *("update", "delete", "update", "insert", "update"),
)
"""Of ten changes six update, three insert, one deletes."""


class Change(NamedTuple):
    """One change of one page."""

    kind: Kind
    number: int


@dataclass(frozen=True, slots=True)
class Live:
    """The numbers of the pages that are there: ``low`` to ``high - 1``."""

    low: int
    high: int

    def after(self, changes: int) -> Live:
        """Return what is there after so many changes."""
        return Live(self.low + count(changes, "delete"), self.high + count(changes, "insert"))


def count(changes: int, kind: Kind) -> int:
    """Return how many of the first ``changes`` changes are of a kind."""
    whole, part = divmod(changes, len(CYCLE))
    return whole * CYCLE.count(kind) + CYCLE[:part].count(kind)


def plan(live: Live, changes: int) -> Iterator[Change]:
    """Yield the changes. No page is updated twice before all others that stay were."""
    low, high = live.low, live.high
    first = live.low + count(changes, "delete")
    staying = live.high - first
    if staying < 1:
        raise ValueError(f"{changes} changes delete all of {live.high - live.low} pages")
    updates = 0
    for number in range(changes):
        kind = CYCLE[number % len(CYCLE)]
        if kind == "update":
            yield Change(kind, first + scattered(updates, staying))
            updates += 1
        elif kind == "insert":
            yield Change(kind, high)
            high += 1
        else:
            yield Change(kind, low)
            low += 1


def scattered(position: int, size: int) -> int:
    """Return the ``position``-th of a fixed permutation of ``range(size)``: far from its neighbours.

    Two primes, so that one of them does not divide the size (below 62 million).
    """
    return position * (7919 if size % 7919 else 7907) % size


def page_id(number: int) -> ObjectId:
    """Return the id that the Spaces generator gives to page ``number``."""
    return ObjectId((0x66000000 + (number >> 24)).to_bytes(4, "big") + number.to_bytes(8, "big"))
