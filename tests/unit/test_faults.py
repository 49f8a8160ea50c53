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


def test_a_row_hidden_by_its_tenant_is_its_documents_trouble_and_a_refused_new_row_everyones() -> None:
    for text, action in (
        ('new row violates row-level security policy (USING expression) for table "a"', Action.DEAD),
        (
            "neue Zeile verletzt Policy für Sicherheit auf Zeilenebene (USING-Ausdruck) für Tabelle »a«",
            Action.DEAD,
        ),
        ("une ligne viole la police au niveau ligne (expression USING) pour la table a: policy", Action.DEAD),
        ("违反表的行级安全策略（USING expression） policy", Action.DEAD),
        ('new row violates row-level security policy for table "a"', Action.STOP),
        ("permission denied for table (USING expression)", Action.STOP),
    ):
        fields = {
            "C": "42501",
            "M": text,
            "R": "ExecWithCheckOptions" if "olicy" in text else "aclcheck_error",
        }
        found = asyncpg.PostgresError.new(fields)
        assert action_for(found)[0] is action, text
        assert action is Action.STOP or kind_for(found) == "row_tenant"


@pytest.mark.parametrize("code", ["40P01", "53300", "55P03", "57014", "57P01", "25006", "08006"])
def test_what_passes_is_tried_again(code: str) -> None:
    assert action_for(error(code))[0] is Action.RETRY
    assert retry_reason(error(code)) not in ("data", "other")


def test_a_plan_that_an_altered_table_made_invalid_is_made_again() -> None:
    assert action_for(asyncpg.InvalidCachedStatementError("a plan"))[0] is Action.RETRY


def test_a_server_that_became_read_only_is_left() -> None:
    assert unusable(error("25006")) and not unusable(error("40P01"))
