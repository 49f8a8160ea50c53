"""A lag is told from a mismatch by what the looks saw, not by time."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from topics import Version
from worker.reconcile.judge import HOT, Identity, Look, Mismatch, Moment, first, judge

AT = datetime(2024, 1, 1, tzinfo=UTC)
IDENTITY = Identity("db.pages", UUID(int=1), "db.pages", b"")
LOOK = Look(IDENTITY, "different", 1, 2, UUID(int=9), Version(50, 0))


def moment(read: int, applied: int | None, *, copying: bool = False) -> Moment:
    return Moment(AT + timedelta(seconds=read), read, applied, copying)


def seen(look: Look, at: Moment, before: Mismatch | None = None) -> Mismatch:
    after = judge(before or first(look, AT, 7), look, at)
    assert after is not None
    return after


def test_a_first_look_proves_nothing_however_far_apply_is() -> None:
    assert seen(LOOK, moment(100, 10_000)).state == "settling"


def test_the_same_pair_is_real_once_apply_has_all_up_to_the_first_reading() -> None:
    once = seen(LOOK, moment(100, 90))
    late = seen(LOOK, moment(200, 99), once)
    assert (late.state, late.reason) == ("settling", "apply has not come so far")
    assert seen(LOOK, moment(201, None), late).state == "settling"
    real = seen(LOOK, moment(300, 100), late)
    assert (real.state, real.first_seen_at, real.generation) == ("real", AT, 7)


def test_whatever_changed_begins_anew() -> None:
    once = seen(LOOK, moment(100, 90))
    for other in (
        replace(LOOK, version=Version(60, 0)),
        replace(LOOK, mongo=3),
        replace(LOOK, postgres=3),
        replace(LOOK, tenant=UUID(int=8)),
        replace(LOOK, kind="missing", postgres=None),
    ):
        again = seen(other, moment(200, 10_000), once)
        assert (again.state, again.observed_time, again.changes) == ("settling", 200, 1)
        assert seen(other, moment(300, 199), again).state == "settling"
        assert seen(other, moment(300, 200), again).state == "real"


def test_a_real_one_that_changes_settles_first() -> None:
    real = seen(LOOK, moment(300, 100), seen(LOOK, moment(100, 90)))
    assert seen(replace(LOOK, mongo=5), moment(400, 10_000), real).state == "settling"


def test_nothing_is_real_while_the_copy_is_not_applied() -> None:
    once = seen(LOOK, moment(100, 90))
    copying = seen(LOOK, moment(200, 10_000, copying=True), once)
    assert (copying.state, copying.reason) == ("settling", "its collection's copy is not yet applied")
    assert seen(LOOK, moment(300, 10_000), copying).state == "real"


def test_what_fits_is_forgotten() -> None:
    fits = replace(LOOK, kind=None)
    assert judge(seen(LOOK, moment(100, 90)), fits, moment(200, 0)) is None


def test_a_document_that_changes_at_every_look_says_so() -> None:
    now = seen(LOOK, moment(1, 0))
    for number in range(HOT):
        now = seen(replace(LOOK, mongo=100 + number), moment(2 + number, 10_000), now)
    assert (now.state, now.reason) == ("settling", "it changes faster than it can be compared")


def test_a_document_with_a_parked_event_is_on_its_way() -> None:
    once = seen(replace(LOOK, parked=True), moment(100, 90))
    late = seen(replace(LOOK, parked=True), moment(200, 10_000), once)
    assert (late.state, late.reason) == ("settling", "an event of it is parked")
    assert seen(LOOK, moment(300, 10_000), late).state == "real"
