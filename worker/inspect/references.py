"""Finds fields whose values are ids of another collection's documents, by looking them up there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from uuid import UUID

from bson import ObjectId

from worker.inspect.choices import FITTING
from worker.inspect.names import singular, snake
from worker.inspect.profile import Profile, Reference
from worker.inspect.survey import Survey, Surveyed
from worker.mongo.client import Client
from worker.mongo.sample import count_existing

_LOOK_UPS = 1000
# The types that tell a reference by themselves; a short text or number does so only by the field's name.
_TELLING = {"objectId": ObjectId, "uuid": UUID}
_BY_NAME = {"string": str, "int": int, "long": int}


async def find_references(client: Client, survey: Survey) -> None:
    """Set ``reference`` in the profiles of fields most of whose values are another collection's ids."""
    left = _LOOK_UPS
    for one in survey.collections:
        for name, profile in _fields(one.profile):
            best: Reference | None = None
            for other, values in _possible(name, profile, survey.collections):
                if not left:
                    return
                left -= 1
                found = await count_existing(client, survey.database, other.name, values)
                if found > (best.found if best else len(values) // 2):
                    best = Reference(other.name, len(values), found)
                if found == len(values):
                    break
            profile.reference = best


def _fields(profile: Profile, within: str = "") -> Iterator[tuple[str, Profile]]:
    """Yield every field but ``_id``, with its name; of arrays their elements, under the array's name."""
    if profile.like_a_map and within:
        return
    for name, inner in profile.fields.items():
        if name == "_id" and not within:
            continue
        whole = within if name in ("id", "_id") else name
        if inner.elements is not None:
            yield whole, inner.elements
            yield from _fields(inner.elements, whole)
        yield whole, inner
        yield from _fields(inner, whole)


def _possible(
    name: str, profile: Profile, collections: list[Surveyed]
) -> Iterator[tuple[Surveyed, list[object]]]:
    """Yield the collections that a field may refer to, those first that its name tells, with its values."""
    for kind, type_ in (_TELLING | _BY_NAME).items():
        if not profile.values or profile.of(kind) < FITTING * profile.values:
            continue
        values: list[object] = [value for value in profile.id_values if isinstance(value, type_)]
        likely = sorted(collections, key=lambda other: not _named_after(name, other.name))
        for other in likely:
            ids = other.profile.fields.get("_id")
            if values and ids and ids.kinds[kind] and (kind in _TELLING or _named_after(name, other.name)):
                yield other, values


def _named_after(field: str, collection: str) -> bool:
    """Whether a field's name says that it refers: ``orderIds``, ``parent_order`` to ``orders``."""
    one = singular(snake(collection))
    base = re.sub(r"_(ids?|refs?|keys?)$", "", snake(field))
    return singular(base) == one or singular(base).endswith(f"_{one}")
