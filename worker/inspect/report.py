"""Tells a survey: as JSON, or as lines for a person."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from worker.inspect.choices import different, kinds_of, percent
from worker.inspect.draft import Draft
from worker.inspect.indexes import DraftIndexes
from worker.inspect.names import shown
from worker.inspect.profile import Profile
from worker.inspect.survey import Survey, Unsupported, told_of
from worker.inspect.tenants import candidates

_DEEP = 12


def as_json(survey: Survey, draft: Draft, indexes: DraftIndexes) -> dict[str, Any]:
    """Return what was found, JSON-ready; it holds names, counts and bounds, no other value of a document."""
    tenants = {one.name: one.tenant.path for one in draft.collections}
    return {
        "database": survey.database,
        "tenant_candidates": [asdict(one) for one in candidates(survey)],
        "collections": {
            one.name: {
                "estimated": one.info.count,
                "sampled": one.taken.documents,
                "whole": one.taken.whole and not one.taken.cut_short,
                "undecodable": one.taken.undecodable,
                "tenant": tenants[one.name],
                "indexes": [str(index["name"]) for index in one.info.indexes],
                "fields": {
                    name: field.as_json(one.documents) for name, field in sorted(one.profile.fields.items())
                },
            }
            for one in survey.collections
        },
        "indexes": [index.sql for index in indexes.indexes],
        "unsupported": [asdict(one) for one in all_unsupported(survey, indexes)],
    }


def all_unsupported(survey: Survey, indexes: DraftIndexes) -> list[Unsupported]:
    """Return everything that has no equivalent."""
    return [*survey.unsupported, *indexes.unsupported]


def lines(survey: Survey, indexes: DraftIndexes) -> Iterator[str]:
    """Yield the report line by line."""
    for one in survey.collections:
        yield f"{shown(one.name)}: {told_of(one)}"
        yield from _paths(one.profile, "  ", 0)
        yield ""
    if found := candidates(survey):
        yield "may tell the tenant:"
        for candidate in found:
            has = ", ".join(f"{shown(name)} {share:.0%}" for name, share in candidate.presence.items())
            refers = f"; ids of {shown(candidate.refers_to)}" if candidate.refers_to else ""
            yield f"  {shown(candidate.path)}: {candidate.different} different; in {has}{refers}"
        yield ""
    if unsupported := all_unsupported(survey, indexes):
        yield "not supported:"
        yield from (f"  {shown(one.collection)}, {one.what}: {one.why}" for one in unsupported)


def _paths(profile: Profile, indent: str, depth: int) -> Iterator[str]:
    if profile.like_a_map and depth:
        yield f"{indent}(names that look like data: {len(profile.fields)} or more)"
        return
    for name, field in sorted(profile.fields.items()):
        yield from _path(shown(name) or '""', field, profile.objects, indent, depth)


def _path(name: str, field: Profile, of: int, indent: str, depth: int) -> Iterator[str]:
    parts = [f"in {percent(field.count, of)}", kinds_of(field) or "only null"]
    if nulls := field.kinds["null"]:
        parts.append(f"null {percent(nulls, field.count)}")
    if field.different:
        parts.append(f"{different(field)} different")
    if field.kinds["string"]:
        parts.append(f"up to {field.longest} characters")
    if field.least is not None:
        parts.append(f"{field.least} to {field.greatest}")
    if field.sizes:
        parts.append(f"{field.sizes[0]} to {field.sizes[1]} elements")
    if field.reference:
        parts.append(f"ids of {shown(field.reference.collection)}")
    yield f"{indent}{name}: {'; '.join(parts)}"
    if depth < _DEEP:
        if field.elements and field.elements.count:
            yield from _path("[]", field.elements, field.total_size, f"{indent}  ", depth + 1)
        yield from _paths(field, f"{indent}  ", depth + 1)
