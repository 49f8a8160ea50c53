"""What commands tell of mismatches: ids, paths and types, never a value."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click
import orjson
from rich.console import Console
from rich.table import Table

from topics import key_to_id
from worker.extended_json import extended
from worker.postgres.mismatches import MismatchRow


def told(row: MismatchRow) -> dict[str, Any]:
    """Return a mismatch as it is printed."""
    return {
        "collection": row["collection"],
        "row_id": str(row["row_id"]),
        "id": None if row["document_id"] is None else extended(key_to_id(row["document_id"])),
        "tenant": row["tenant_id"] and str(row["tenant_id"]),
        "row_tenant": row["row_tenant_id"] and str(row["row_tenant_id"]),
        "state": row["state"],
        "kind": row["kind"],
        "reason": row["reason"],
        "fields": fields(row["fields"]),
        "first_seen_at": row["first_seen_at"],
        "since": row["since"],
        "checked_at": row["checked_at"],
        "changes": row["changes"],
        "repairs": row["repairs"],
    }


def fields(found: Iterable[Sequence[Any]]) -> list[dict[str, Any]]:
    """Return what differs: paths, and the type on each side."""
    return [{"path": path, "mongo": mongo, "postgres": postgres} for path, mongo, postgres in found]


def lines_of_fields(found: Iterable[dict[str, Any]]) -> list[str]:
    """Return a line for each field that differs."""
    return [f"{one['path']} ({one['mongo'] or 'missing'}, {one['postgres'] or 'missing'})" for one in found]


def shown_id(one: dict[str, Any]) -> str:
    """Return the id of a mismatch as a command takes it."""
    return one["row_id"] if one["id"] is None else json.dumps(one["id"], ensure_ascii=False)


def print_table(listed: Sequence[dict[str, Any]]) -> None:
    """Print mismatches, a line each."""
    table = Table(box=None)
    for name in ("collection", "id", "state", "kind", "fields", "reason"):
        table.add_column(name, overflow="fold")
    for one in listed:
        some = ", ".join(lines_of_fields(one["fields"][:3]))
        table.add_row(one["collection"], shown_id(one), one["state"], one["kind"], some, one["reason"])
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def print_json(value: Any) -> None:
    """Print JSON to stdout."""
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2, default=str).decode())
