"""The mapping's codec alone: documents to rows and rows to documents, on one core, without services.

`python -m bench.codec` prints the figures as JSON: pages of 1 KB, and the same with five array elements in a
child table. Medians of CPU time, so that other processes count little.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

import bson
import click
import orjson
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion

from bench.site import MAPPING
from examples.spaces.generate import Generator
from worker.mapping import CollectionPlan, Rebuilder, TablePlan, load
from worker.mapping.model import CollectionMapping

Document = dict[str, Any]

_CODEC: CodecOptions[Document] = CodecOptions(
    tz_aware=True,
    uuid_representation=UuidRepresentation.STANDARD,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
)
_DOCUMENTS = 500
_PARTS = {
    "table": "page_parts",
    "parent": "page_id",
    "position": "position",
    "tenant": "tenant_id",
    "rest": "rest",
    "columns": {
        "type": {"type": "text"},
        "text": {"type": "text"},
        "n": {"type": "integer"},
        "at": {"type": "timestamptz"},
    },
}


def figures(rounds: int = 9) -> dict[str, dict[str, int]]:
    """Return bytes a document, and documents a second each way, for both kinds of page."""
    mapping = load(MAPPING).collections["pages"]
    generator = Generator(1)
    pages = [generator.page(number) for number in range(_DOCUMENTS)]
    parts = [{"type": "text", "text": f"some words for a part of a page, {n}", "n": n} for n in range(5)]
    whole = CollectionMapping.model_validate(
        mapping.model_dump(exclude_unset=True) | {"children": {"parts": _PARTS}}
    )
    longer = [page | {"parts": [part | {"at": page["createdAt"]} for part in parts]} for page in pages]
    return {
        "page": _measured(mapping, pages, rounds),
        "page_with_5_elements": _measured(whole, longer, rounds),
    }


def _measured(mapping: CollectionMapping, documents: list[Document], rounds: int) -> dict[str, int]:
    encoded = [bson.encode(document, codec_options=_CODEC) for document in documents]
    decoded = [bson.decode(one, codec_options=_CODEC) for one in encoded]
    plan, rebuilder = CollectionPlan(mapping), Rebuilder(mapping)
    held = [
        (
            _held([made.row], plan.table)[0],
            [_held(rows, table) for rows, table in zip(made.children, plan.children, strict=True)],
        )
        for made in map(plan.rows, decoded)
    ]
    for document, (row, children) in zip(decoded, held, strict=True):
        assert rebuilder.document(row, children) == document
    return {
        "bytes": sum(map(len, encoded)) // len(encoded),
        "rows_per_second": _rate(rounds, lambda: [plan.rows(document) for document in decoded]),
        "rebuilt_per_second": _rate(
            rounds, lambda: [rebuilder.document(row, children) for row, children in held]
        ),
    }


def _rate(rounds: int, work: Callable[[], object]) -> int:
    seconds: list[float] = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return round(_DOCUMENTS / statistics.median(seconds))


def _held(rows: list[Document], table: TablePlan) -> list[Document]:
    """Return rows as PostgreSQL would give them back, of the types that pages have."""
    sent = orjson.loads(orjson.dumps(rows))
    return [{name: _column(row[name], type_) for name, type_ in table.columns.items()} for row in sent]


def _column(value: Any, type_: str) -> Any:
    if value is None:
        return None
    match type_:
        case "uuid":
            return UUID(value)
        case "timestamptz":
            return datetime.fromisoformat(value)
        case "jsonb":
            return json.dumps(value).encode()
        case _:
            return value


@click.command()
@click.option("--rounds", default=9, show_default=True, help="times that each is measured")
def main(rounds: int) -> None:
    """Measure documents to rows and back, without services.

    Example: taskset -c 0 python -m bench.codec
    """
    click.echo(orjson.dumps(figures(rounds), option=orjson.OPT_INDENT_2).decode())


if __name__ == "__main__":
    main()
