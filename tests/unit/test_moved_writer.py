"""The judge of a storm and of seeds with moves: what it must find in a record, and what it must let pass."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from examples.spaces.moved_writer import Accepted, MovedWriter, Written, Wrong, away_of, two_writers

TENANT = UUID(int=1)
OPENED, CLOSED, DECIDED = 10.0, 20.0, 30.0
THERE_AND_BACK = [
    (TENANT, "mongo", "draining", 9.0),
    (TENANT, "draining", "postgres", OPENED),
    (TENANT, "postgres", "rolling_back", CLOSED),
    (TENANT, "rolling_back", "opening", DECIDED),
    (TENANT, "opening", "mongo", 31.0),
]
TURNED_BACK = [
    *THERE_AND_BACK[:3],
    (TENANT, "rolling_back", "postgres", 25.0),
    (TENANT, "postgres", "rolling_back", 40.0),
    (TENANT, "rolling_back", "opening", 41.0),
]


@pytest.mark.parametrize(
    ("side", "sent", "answered"),
    [
        ("mongo", 15.0, 16.0),
        ("mongo", OPENED + 0.1, OPENED + 0.2),
        ("mongo", DECIDED - 0.2, DECIDED - 0.1),
        ("postgres", 8.0, OPENED - 0.1),
        ("postgres", CLOSED + 0.1, CLOSED + 0.2),
        ("postgres", 32.0, 33.0),
    ],
)
def test_a_write_of_the_wrong_database(side: str, sent: float, answered: float) -> None:
    write = Accepted(TENANT, side, sent, answered)
    assert two_writers([write], away_of(THERE_AND_BACK)) == [write]


@pytest.mark.parametrize(
    ("side", "sent", "answered"),
    [
        ("mongo", 1.0, 2.0),
        ("mongo", 8.0, OPENED + 5),  # sent before: nobody knows when it was done
        ("mongo", 15.0, DECIDED + 0.1),
        ("postgres", 8.0, OPENED + 0.1),
        ("postgres", 15.0, 16.0),
        ("postgres", CLOSED - 0.1, 35.0),
    ],
)
def test_a_write_of_the_right_database(side: str, sent: float, answered: float) -> None:
    assert two_writers([Accepted(TENANT, side, sent, answered)], away_of(THERE_AND_BACK)) == []


def test_a_rollback_that_went_back() -> None:
    away = away_of(TURNED_BACK)
    fine, wrong = Accepted(TENANT, "postgres", 27.0, 28.0), Accepted(TENANT, "mongo", 27.0, 28.0)
    assert two_writers([fine, wrong], away) == [wrong]
    assert two_writers([Accepted(TENANT, "postgres", 42.0, 43.0)], away) != []


def test_a_tenant_that_is_still_away_and_one_that_never_was() -> None:
    away, other = away_of(THERE_AND_BACK[:2]), uuid4()
    wrong = Accepted(TENANT, "mongo", 50.0, 51.0), Accepted(other, "postgres", 50.0, 51.0)
    fine = Accepted(TENANT, "postgres", 50.0, 51.0), Accepted(other, "mongo", 50.0, 51.0)
    assert two_writers([*wrong, *fine], away) == list(wrong)


class _Has(MovedWriter):
    """A writer whose record and whose databases are given."""

    def __init__(self, states: dict[UUID, str | None], updates: dict[UUID, int], there: Any) -> None:
        self.written = Written()
        self.written.states[TENANT] = states
        self._updates = updates
        self._there = there

    async def _mongo_has(self, tenant: UUID) -> dict[UUID, tuple[Any, Any]]:
        return self._there

    async def _postgres_has(self, tenant: UUID) -> dict[UUID, tuple[Any, Any]]:
        return self._there


@pytest.mark.parametrize(
    ("name", "updates", "there", "kind"),
    [
        ("b", 2, ("b", 2), None),
        (None, 2, None, None),
        ("b", 2, None, "lost"),
        ("b", 2, ("a", 2), "stale"),
        (None, 2, ("b", 2), "resurrected"),
        ("b", 2, ("b", 3), "twice"),
        ("b", 2, ("b", 1), "twice"),
    ],
)
async def test_a_lead_is_as_it_was_acknowledged(
    name: str | None, updates: int, there: tuple[str, int] | None, kind: str | None
) -> None:
    lead = uuid4()
    has = _Has({lead: name}, {lead: updates}, {} if there is None else {lead: there})
    wanted = [] if kind is None else [Wrong(TENANT, lead, kind)]
    for side in ("mongo", "postgres"):
        assert await has.compare({TENANT: side}) == wanted
