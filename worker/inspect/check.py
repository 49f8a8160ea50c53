"""Maps live documents with a mapping file and counts what would not fit, before anything is copied.

It knows nothing of PostgreSQL: a value that an index or a constraint there refuses is found by apply alone.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from bson.errors import BSONError

from topics import Collection
from worker.inspect.names import shown
from worker.inspect.profile import kind_of
from worker.inspect.survey import SYSTEM_DATABASES, Report, Unsupported, refused
from worker.mapping import Mapping, Plans, Rows, Unmappable
from worker.mapping.columns import ABSENT
from worker.mapping.extended import from_extended
from worker.mapping.model import Child, CollectionMapping
from worker.mapping.plan import NOTES, Planned
from worker.mapping.sources import PLACEHOLDER
from worker.mongo.client import Client
from worker.mongo.sample import Taken, collections, database_names, sample

_EXAMPLES = 3
_PATHS = 500  # counted in a collection
_EVERY = 20_000

# What apply makes a dead letter of, too.
_FAULTS = (KeyError, ValueError, TypeError, OverflowError, RecursionError, BSONError)


@dataclass(slots=True)
class DeadLetter:
    """Documents that would be dead letters for one reason; ``examples`` are their ids."""

    kind: str
    reason: str
    count: int = 0
    examples: list[Any] = field(default_factory=list)


@dataclass(slots=True)
class Checked:
    """What a collection's documents are under the mapping.

    ``noted``: mapped fields whose column cannot say the value, by path and type. ``unmapped``: fields without
    a column. Both are kept in the rest column. ``ignored``: fields left behind on purpose.
    """

    name: str
    taken: Taken
    dead_letters: dict[tuple[str, str], DeadLetter] = field(default_factory=dict)
    noted: Counter[tuple[str, str]] = field(default_factory=Counter)
    unmapped: Counter[tuple[str, str]] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)

    @property
    def dead(self) -> int:
        """How many documents would be dead letters."""
        return sum(letter.count for letter in self.dead_letters.values())


@dataclass(slots=True)
class Check:
    """A check of a whole mapping.

    ``missing``: collections of the mapping that MongoDB has not, each with the nearest unmapped one's name;
    ``unsupported``: those that cannot be migrated.
    """

    collections: list[Checked]
    missing: dict[str, str | None]
    unsupported: list[Unsupported]
    unmapped_collections: list[str]

    @property
    def fits(self) -> bool:
        """Whether no document seen would be a dead letter, and every collection can be migrated."""
        return not self.unsupported and not any(one.dead for one in self.collections)


async def check(
    client: Client, mapping: Mapping, only: Iterable[str], size: int | None, report: Report
) -> Check:
    """Map ``size`` documents of each collection, None: all; ``only``: names as the mapping has them."""
    plans, wanted = Plans(mapping), set(only) or set(mapping.collections)
    found, seen, others, unsupported = list[Checked](), set[str](), list[str](), list[Unsupported]()
    for database in await database_names(client):
        if database in SYSTEM_DATABASES or not _may_be(mapping, database):
            continue
        infos = await collections(client, database)
        for info in infos:
            planned = plans.find(f"{database}.{info.name}")
            if planned is None:
                others.append(f"{database}.{info.name}")
            elif planned.name not in wanted:
                continue
            elif why := refused(database, info, infos):
                seen.add(planned.name)
                unsupported.append(Unsupported(f"{database}.{info.name}", *why))
            else:
                seen.add(planned.name)
                found.append(await _collection(client, mapping, planned, database, info.name, size, report))
    missing = {
        name: next(iter(difflib.get_close_matches(f"{mapping.database}.{name}", others, n=1)), None)
        for name in wanted - seen
    }
    return Check(found, dict(sorted(missing.items())), unsupported, others)


def _may_be(mapping: Mapping, database: str) -> bool:
    if PLACEHOLDER not in mapping.database:
        return database == mapping.database
    return any(mapping.sources().find(f"{database}.{name}") for name in mapping.collections)


async def _collection(
    client: Client,
    mapping: Mapping,
    planned: Planned,
    database: str,
    name: str,
    size: int | None,
    report: Report,
) -> Checked:
    checked = Checked(str(Collection(database, name)), Taken())
    own = mapping.collections[planned.name]
    count = _Counting(planned, own, checked)
    async for document in sample(client, database, name, size, checked.taken):
        count.document(document)
        if checked.taken.documents % _EVERY == 0:
            report(f"{shown(checked.name)}: {checked.taken.documents:,} documents")
    if checked.taken.undecodable:
        letter = DeadLetter("envelope", "the document is no valid BSON", checked.taken.undecodable)
        checked.dead_letters["envelope", letter.reason] = letter
    report(f"{shown(checked.name)}: {checked.taken.documents:,} documents, {checked.dead} dead letters")
    return checked


class _Counting:
    """Counts one collection's documents."""

    def __init__(self, planned: Planned, mapping: CollectionMapping, checked: Checked) -> None:
        self._plan, self._mapping, self._checked = planned.plan, mapping, checked
        self._rests = [mapping.rest, *(child.rest for _, child in mapping.tables()[1:])]
        self._paths = ["", *_paths_below(mapping, "")]

    def document(self, document: dict[str, Any]) -> None:
        """Map one document."""
        try:
            rows = self._plan.rows(document)
        except Unmappable as error:
            self._dead(error.kind, str(error), document)
        except _FAULTS as error:
            self._dead("mapping", f"the document cannot be mapped ({type(error).__name__})", document)
        else:
            self._rows(rows)
        for path in _ignored(self._mapping, document, ""):
            self._add(self._checked.ignored, path)

    def _dead(self, kind: str, reason: str, document: dict[str, Any]) -> None:
        letters = self._checked.dead_letters
        if (kind, reason) not in letters and len(letters) >= _PATHS:
            reason = "other reasons"
        letter = letters.setdefault((kind, reason), DeadLetter(kind, reason))
        letter.count += 1
        if len(letter.examples) < _EXAMPLES:
            letter.examples.append(document["_id"])

    def _rows(self, rows: Rows) -> None:
        for path, rest, some in zip(self._paths, self._rests, ([rows.row], *rows.children), strict=True):
            for row in some:
                if row[rest]:
                    self._rest(path, row[rest])

    def _rest(self, within: str, rest: dict[str, Any]) -> None:
        for name, value in rest.items():
            if name != NOTES:
                self._unmapped(f"{within}{name[1:] if name.startswith('$$') else name}", value)
        for path, value in cast("dict[str, Any]", rest.get(NOTES, {})).items():
            # null, missing where there is a default, and an empty array of child rows are said exactly.
            if value is not None and value != ABSENT and value != []:
                place = ".".join("[]" if step.isdigit() else step for step in path.split("."))
                self._add(self._checked.noted, (within + place, kind_of(from_extended(value))))

    def _unmapped(self, path: str, value: Any) -> None:
        kind = kind_of(from_extended(value))
        if kind == "object" and isinstance(value, dict) and value:
            # The object is there because some of its fields are, or because it is empty without them.
            for name, inner in cast("dict[str, Any]", value).items():
                self._unmapped(f"{path}.{name}", inner)
        elif value != {}:
            self._add(self._checked.unmapped, (path, kind))

    def _add(self, counter: Counter[Any], key: Any) -> None:
        if key in counter or len(counter) < _PATHS:
            counter[key] += 1


def _paths_below(part: CollectionMapping | Child, within: str) -> list[str]:
    """Return the path of each child table's rows, in the plan's order."""
    found: list[str] = []
    for path, child in part.children.items():
        here = f"{within}{path}[]."
        found += [here, *_paths_below(child, here)]
    return found


def _ignored(part: CollectionMapping | Child, value: dict[str, Any], within: str) -> list[str]:
    """Return the ignored fields that a document has."""
    found = [f"{within}{path}" for path in part.ignore if _at(value, path) is not None]
    for path, child in part.children.items():
        array = _at(value, path)
        if isinstance(array, list):
            for element in cast("list[Any]", array):
                if isinstance(element, dict):
                    found += _ignored(child, cast("dict[str, Any]", element), f"{within}{path}[].")
    return found


def _at(value: Any, path: str) -> Any:
    for name in path.split("."):
        value = cast("dict[str, Any]", value).get(name) if isinstance(value, dict) else None
    return value


Shown = Callable[[Any], Any]


def as_json(checked: Check, id_shown: Shown) -> dict[str, Any]:
    """Return a check, JSON-ready; of documents it tells ids only."""
    return {
        "fits": checked.fits,
        "collections": [
            {
                "collection": one.name,
                "documents": one.taken.documents,
                "whole": one.taken.whole and not one.taken.cut_short,
                "dead_letters": [
                    {
                        "kind": letter.kind,
                        "reason": letter.reason,
                        "count": letter.count,
                        "examples": [id_shown(example) for example in letter.examples],
                    }
                    for letter in one.dead_letters.values()
                ],
                "noted": [{"path": p, "type": t, "count": n} for (p, t), n in one.noted.most_common()],
                "unmapped": [{"path": p, "type": t, "count": n} for (p, t), n in one.unmapped.most_common()],
                "ignored": [{"path": path, "count": n} for path, n in one.ignored.most_common()],
            }
            for one in checked.collections
        ],
        "missing_collections": [
            {"collection": name, "nearest": near} for name, near in checked.missing.items()
        ],
        "unsupported": [asdict(one) for one in checked.unsupported],
        "unmapped_collections": checked.unmapped_collections,
    }
