"""What shadow reads have found and nobody was told yet, by tenant and within bounds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

OUTCOMES = ("equal", "different", "unsettled", "failed", "left_out")
_TENANTS = 1000  # beyond that many, others are not told of
_PLACES = 100  # of a tenant; of one report too
_REPORTED = 100  # tenants of one report
_LONGEST = 200  # characters of an id or a path


@dataclass
class _Found:
    counts: Counter[str] = field(default_factory=Counter[str])
    places: dict[tuple[str, str], None] = field(default_factory=dict[tuple[str, str], None])


class Reports:
    """Gathers, and gives it out in pieces of a bounded size."""

    def __init__(self) -> None:
        self._found: dict[UUID, _Found] = {}

    def add(self, tenant: UUID, counts: dict[str, int], places: Sequence[tuple[str, str]] = ()) -> None:
        """Gather reads of a tenant, by outcome, and the places in which they differed."""
        if tenant not in self._found and len(self._found) >= _TENANTS:
            return
        found = self._found.setdefault(tenant, _Found())
        found.counts.update(counts)
        for id_, path in places:
            if len(found.places) < _PLACES:
                found.places[_clean(id_), _clean(path)] = None

    def take(self) -> list[Report]:
        """Give out all that was gathered; it is forgotten here."""
        taken, self._found = self._found, {}
        return [Report(piece) for piece in _pieces(taken)]

    def put_back(self, reports: Sequence[Report]) -> None:
        """Gather again what could not be told."""
        for report in reports:
            for tenant, found in report.found.items():
                self.add(tenant, dict(found.counts), list(found.places))


@dataclass(frozen=True)
class Report:
    """A part of it. ``str()`` is what crossfade.tell_shadow_reads takes."""

    found: dict[UUID, _Found]

    def __str__(self) -> str:
        told: list[dict[str, Any]] = [
            {"tenant": str(tenant), "places": list(found.places), **found.counts}
            for tenant, found in self.found.items()
        ]
        return json.dumps(told)


def _clean(text: str) -> str:
    """Return what PostgreSQL takes: short, no NUL, no half of a surrogate pair."""
    return text[:_LONGEST].replace("\0", "?").encode(errors="replace").decode()


def _pieces(found: dict[UUID, _Found]) -> Iterator[dict[UUID, _Found]]:
    piece, places = dict[UUID, _Found](), 0
    for tenant, one in found.items():
        if piece and (len(piece) >= _REPORTED or places + len(one.places) > _PLACES):
            yield piece
            piece, places = {}, 0
        piece[tenant] = one
        places += len(one.places)
    if piece:
        yield piece
