from __future__ import annotations

from collections import Counter

import pytest

from bench.changes import Live, count, page_id, plan, scattered
from examples.spaces.generate import Generator


@pytest.mark.parametrize(("live", "changes"), [(Live(0, 50), 100), (Live(7, 9), 13), (Live(3, 7922), 20_000)])
def test_every_change_finds_its_page_as_it_must(live: Live, changes: int) -> None:
    there = set(range(live.low, live.high))
    made = list(plan(live, changes))
    for kind, number in made:
        assert (number in there) == (kind != "insert")
        if kind == "insert":
            there.add(number)
        elif kind == "delete":
            there.remove(number)
    after = live.after(changes)
    assert there == set(range(after.low, after.high))
    assert Counter(kind for kind, _ in made) == Counter(
        {kind: n for kind in ("update", "insert", "delete") if (n := count(changes, kind))}
    )


def test_a_page_that_is_changed_is_changed_once_while_there_are_others() -> None:
    made = list(plan(Live(0, 700), 1000))
    assert len({number for _, number in made}) == 1000


def test_changes_that_would_leave_nothing_to_update_are_refused() -> None:
    with pytest.raises(ValueError, match="delete all"):
        list(plan(Live(0, 10), 100))


@pytest.mark.parametrize("size", [1, 2, 7919, 7920, 3 * 7919])
def test_scattered_is_a_permutation(size: int) -> None:
    assert {scattered(position, size) for position in range(size)} == set(range(size))


@pytest.mark.parametrize("number", [0, 1, 2**24 + 3])
def test_page_ids_are_the_generators(number: int) -> None:
    assert page_id(number) == Generator(1).page(number)["_id"]
