"""Writes a draft as a mapping file, with what a person should decide in comments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from worker.inspect.draft import Draft, DraftCollection, DraftColumn, DraftTable
from worker.inspect.names import shown, yaml_text
from worker.inspect.survey import Unsupported

_WIDE = 110


def mapping_text(draft: Draft, unsupported: Sequence[Unsupported]) -> str:
    """Return the mapping file's text; `worker.mapping.load` reads it as it is."""
    return "\n".join([*_head(draft, unsupported), *_body(draft)]) + "\n"


def _head(draft: Draft, unsupported: Sequence[Unsupported]) -> Iterator[str]:
    yield f"# Drafted by `crossfade inspect` from database {shown(draft.database)}. It can be used as it is;"
    yield "# `# decide:` marks what the sample does not tell. What has no column stays in the rest column."
    if unsupported:
        yield "#"
        yield "# Not in this draft:"
        for one in unsupported:
            yield f"# - {shown(one.collection)}, {one.what}: {one.why}"
    yield "version: 1"
    yield f"database: {yaml_text(draft.database)}"
    yield ""


def _body(draft: Draft) -> Iterator[str]:
    yield "collections:"
    for number, one in enumerate(draft.collections):
        if number:
            yield ""
        yield from _collection(one)


def _collection(one: DraftCollection) -> Iterator[str]:
    yield f"  {yaml_text(one.name)}:  # seen: {one.seen}"
    for told in one.table.decide:
        yield _decide("    ", told)
    yield f"    table: {yaml_text(one.table.name)}"  # it may be `no` or `null`
    for told in one.tenant.decide:
        yield _decide("    ", told)
    if one.tenant.path is None:
        yield "    tenant: null"
    else:
        yield f"    tenant: {{path: {yaml_text(one.tenant.path)}, column: {one.table.tenant}}}"
    yield "    rest: rest"
    yield from _columns(one.table, "    ")
    yield from _children(one.table, "    ")


def _columns(table: DraftTable, indent: str) -> Iterator[str]:
    if not table.columns:
        yield f"{indent}columns: {{}}"
        return
    yield f"{indent}columns:"
    for column in table.columns:
        yield from _column(column, f"{indent}  ")


def _column(column: DraftColumn, indent: str) -> Iterator[str]:
    parts = [] if column.path == column.name else [f"path: {yaml_text(column.path)}"]
    parts.append(f'type: "{column.type}"' if column.type.endswith("[]") else f"type: {column.type}")
    if column.references:
        parts.append(f"references: {yaml_text(column.references.collection)}")
    line = f"{indent}{yaml_text(column.name)}: {{{', '.join(parts)}}}"
    told = "; ".join(column.decide)
    if told and len(line) + len(told) + 12 <= _WIDE:
        yield f"{line}  # decide: {told}"
        return
    if told:
        yield _decide(indent, told)
    yield line


def _children(table: DraftTable, indent: str) -> Iterator[str]:
    if not table.children:
        return
    yield f"{indent}children:"
    for child in table.children:
        inner = f"{indent}    "
        yield f"{indent}  {yaml_text(child.path)}:"
        for told in child.decide:
            yield _decide(inner, told)
        parent = child.parent[0] if len(child.parent) == 1 else f"[{', '.join(child.parent)}]"
        yield f"{inner}table: {child.name}"
        yield f"{inner}parent: {parent}"
        yield f"{inner}position: {child.own_key}"
        if child.tenant:
            yield f"{inner}tenant: {child.tenant}"
        yield f"{inner}rest: {child.rest}"
        yield from _columns(child, inner)
        yield from _children(child, inner)


def _decide(indent: str, told: str) -> str:
    return f"{indent}# decide: {told}"
