"""What apply does about an error of PostgreSQL, by its code."""

from __future__ import annotations

import asyncpg
import pytest

from worker.postgres.faults import RETRY_REASONS, Action, action_for, kind_for, retry_reason, unusable


def error(code: str) -> asyncpg.PostgresError:
    made = asyncpg.PostgresError.new({"C": code, "M": "a row's value"})  # pyright: ignore
    assert isinstance(made, asyncpg.PostgresError)
    return made


@pytest.mark.parametrize(
    ("code", "action", "kind"),
    [
        ("23505", Action.PARK, "unique"),
        ("23503", Action.PARK, "foreign_key"),
        ("23P01", Action.PARK, "exclusion"),
        ("23514", Action.DEAD, "data"),
        ("54000", Action.DEAD, "data"),
        # What a trigger raises about one document's data must not stop all others.
        ("P0001", Action.DEAD, "data"),
        ("P0002", Action.DEAD, "data"),
        ("P0003", Action.DEAD, "data"),
        ("P0004", Action.DEAD, "data"),
        ("21000", Action.DEAD, "data"),
        ("U0001", Action.DEAD, "data"),
        ("ZZ123", Action.DEAD, "data"),
        ("77777", Action.DEAD, "data"),
    ],
)
def test_what_one_events_data_causes_is_that_events_alone(code: str, action: Action, kind: str) -> None:
    assert action_for(error(code))[0] is action and kind_for(error(code)) == kind
    assert retry_reason(error(code)) == "data"


@pytest.mark.parametrize(
    "code", ["42P01", "42501", "XF001", "XX000", "26000", "42P05", "58030", "28P01", "0A000", ""]
)
def test_what_is_about_the_database_stops(code: str) -> None:
    assert action_for(error(code))[0] is Action.STOP
    assert retry_reason(error(code)) in RETRY_REASONS


@pytest.mark.parametrize("code", ["40P01", "53300", "55P03", "57014", "57P01", "25006", "08006"])
def test_what_passes_is_tried_again(code: str) -> None:
    assert action_for(error(code))[0] is Action.RETRY
    assert retry_reason(error(code)) not in ("data", "other")


def test_a_plan_that_an_altered_table_made_invalid_is_made_again() -> None:
    assert action_for(asyncpg.InvalidCachedStatementError("a plan"))[0] is Action.RETRY


def test_a_server_that_became_read_only_is_left() -> None:
    assert unusable(error("25006")) and not unusable(error("40P01"))
