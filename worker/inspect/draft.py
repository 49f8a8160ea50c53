"""Makes tables of a survey: what the mapping and the DDL will say, before either is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from worker.inspect.choices import Choice, Holder, choose, percent
from worker.inspect.names import Names, column_names, mappable, shown, singular, snake
from worker.inspect.profile import Profile, Reference
from worker.inspect.survey import Survey, Surveyed, told_of
from worker.inspect.tenants import TenantChoice

_SMALL = 40  # fields; a larger object's rare ones get no column
_RARE = 0.05
_MOST_COLUMNS = 250  # of a table
_MOST_TABLES = 50  # of a collection
_ALWAYS = 50  # values, from which on "always" is worth a remark


@dataclass(slots=True)
class DraftColumn:
    """A column. ``exact``: it held every value seen; ``longest``: bytes of the longest text."""

    name: str
    path: str
    type: str
    exact: bool
    longest: int
    always: bool
    decide: list[str]
    references: Reference | None = None

    @property
    def refers_firmly(self) -> bool:
        """Whether a foreign key fits: every value seen was found."""
        reference = self.references
        return reference is not None and self.type == "uuid" and reference.found == reference.looked


@dataclass(slots=True)
class DraftTable:
    """A table: a collection's (``path`` is empty), or the one of an array's elements."""

    name: str
    path: str
    above: DraftTable | None
    parent: tuple[str, ...]
    own_key: str  # the id, or the position
    tenant: str | None
    rest: str
    columns: list[DraftColumn] = field(default_factory=list)
    children: list[DraftTable] = field(default_factory=list)
    decide: list[str] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, ...]:
        """The primary key's columns."""
        return (*self.parent, self.own_key)

    def all(self) -> Iterator[DraftTable]:
        """Yield this table and those below it, parents first."""
        yield self
        for child in self.children:
            yield from child.all()


@dataclass(slots=True)
class DraftCollection:
    """A collection's table and tenant."""

    name: str
    table: DraftTable
    tenant: TenantChoice
    seen: str


@dataclass(slots=True)
class Draft:
    """All of it; ``relations`` gives names to what is still to come, as indexes."""

    database: str
    collections: list[DraftCollection]
    relations: Names

    def table_of(self, collection: str) -> DraftTable:
        """Return a collection's own table."""
        return next(one.table for one in self.collections if one.name == collection)


def draft(survey: Survey, tenants: dict[str, TenantChoice]) -> Draft:
    """Return tables for every collection of the survey."""
    relations, kept = Names(), {one.name for one in survey.collections}
    collections: list[DraftCollection] = []
    # Before any child table, so that a collection's table has its name.
    names = {one.name: relations.new(snake(one.name)) for one in survey.collections}
    for one in survey.collections:
        tenant = tenants[one.name]
        made = _Tables(one, tenant, names[one.name], relations, kept)
        collections.append(DraftCollection(one.name, made.root, tenant, told_of(one)))
    return Draft(survey.database, collections, relations)


class _Tables:
    """One collection's tables, while they are made."""

    def __init__(
        self, one: Surveyed, tenant: TenantChoice, name: str, relations: Names, known: set[str]
    ) -> None:
        self._tenant_path, self._relations, self._known = tenant.path, relations, known
        column = None if tenant.path is None else "id" if tenant.path == "_id" else "tenant_id"
        self._left = _MOST_TABLES
        self._tenant = "tenant_id" if column else None
        self.root = DraftTable(name, "", None, (), "id", column, "rest")
        self._sizes = {id(self.root): one.documents}
        self._names = {id(self.root): column_names("id", "rest", *([column] if column else []))}
        if not one.documents:
            self.root.decide.append("no document was seen")
        ids = one.profile.fields.get("_id")
        if ids and (others := ids.count - ids.of("objectId", "uuid")):
            told = f"{percent(others, ids.count)} of the ids are neither ObjectId nor UUID: row ids are made "
            self.root.decide.append(told + "from them, and the rest column keeps them")
        self._fill(self.root, one.profile, "")
        for table in self.root.all():
            _remark_always(table)

    def _fill(self, table: DraftTable, objects: Profile, within: str) -> None:
        """Give a table the fields of the objects at a path of its rows' objects."""
        left_out: list[str] = []
        if objects.more_names:
            table.decide.append(f"more different fields{_inside(within)} than are followed: the rest column")
        for name, profile in objects.fields.items():
            path = f"{within}{name}"
            if not table.path and (path in ("_id", self._tenant_path) or (name == "_id" and not within)):
                continue
            rare = len(objects.fields) > _SMALL and profile.count < _RARE * objects.objects
            if rare or not mappable(name):
                left_out.append(name)
            else:
                self._field(table, profile, path)
        if left_out:
            some = ", ".join(shown(name) or '""' for name in left_out[:8])
            more = f" and {len(left_out) - 8} more" if len(left_out) > 8 else ""
            told = f"too rare for a column, or a mapping cannot name them: {some}{more}{_inside(within)}"
            table.decide.append(f"only in the rest column: {told}")

    def _field(self, table: DraftTable, profile: Profile, path: str) -> None:
        choice = choose(profile)
        inside = not table.path and self._tenant_path and self._tenant_path.startswith(f"{path}.")
        if inside or (choice.holder is Holder.FIELDS and any(map(mappable, profile.fields))):
            _tell(table, path, choice.decide if choice.holder is Holder.FIELDS else [])
            self._fill(table, profile, f"{path}.")
        elif choice.holder is Holder.TABLE and profile.elements is not None and self._left:
            self._child(table, profile.elements, path, choice)
        elif choice.holder is Holder.REST:
            _tell(table, path, [f"{told}: only in the rest column" for told in choice.decide])
        elif len(table.columns) >= _MOST_COLUMNS:
            _tell(table, path, [f"the table has {_MOST_COLUMNS} columns already: only in the rest column"])
        else:
            if choice.holder is not Holder.COLUMN:  # an object without a name for a path, a table too many
                choice = Choice(Holder.COLUMN, "jsonb", decide=choice.decide)
            self._column(table, profile, path, choice)

    def _column(self, table: DraftTable, profile: Profile, path: str, choice: Choice) -> None:
        # What was found of an array's elements is kept with them.
        told = profile.elements if choice.type.endswith("[]") and profile.elements else profile
        column = DraftColumn(
            self._names[id(table)].new(snake(path)),
            path,
            choice.type,
            choice.exact,
            profile.longest_bytes,
            profile.values == profile.count == self._sizes[id(table)],
            list(choice.decide),
        )
        reference = told.reference
        if reference and reference.collection in self._known and choice.type != "jsonb":
            self._refer(column, told, reference)
        table.columns.append(column)

    def _refer(self, column: DraftColumn, profile: Profile, reference: Reference) -> None:
        column.references = reference
        column.type = "uuid[]" if column.type.endswith("[]") else "uuid"
        column.exact = True  # every value has a row id, and its own
        column.decide.clear()
        lost = reference.looked - reference.found
        if lost:
            told = f"{lost} of {reference.looked} ids looked up are not in {shown(reference.collection)}"
            column.decide.append(f"{told}: no foreign key")
        if profile.of("objectId", "uuid") < profile.values:
            column.decide.append("the ids become row ids, as in that collection; the rest column keeps them")

    def _child(self, table: DraftTable, elements: Profile, path: str, choice: Choice) -> None:
        self._left -= 1
        root = self.root.name
        first = f"{singular(root)}_id"
        above = table.key[1:] if table.path else ()
        parent = (first, *above[:-1], f"{singular(snake(table.path))}_position") if table.path else (first,)
        parent = _distinct(parent)
        name = self._relations.new(f"{singular(table.name)}_{snake(path)}")
        own = _distinct((*parent, "position"))
        child = DraftTable(name, path, table, parent, own[-1], self._tenant, "rest")
        taken = [*own, "rest", *([self._tenant] if self._tenant else [])]
        self._names[id(child)] = column_names(*taken)
        child.decide.extend(choice.decide)
        self._sizes[id(child)] = elements.objects
        table.children.append(child)
        self._fill(child, elements, "")


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return a key's names, each once."""
    given = Names()
    return tuple(given.new(name) for name in names)


def _inside(within: str) -> str:
    return f" (inside {shown(within[:-1])})" if within else ""


def _tell(table: DraftTable, path: str, decide: list[str]) -> None:
    table.decide.extend(f"{shown(path)}: {told}" for told in decide)


def _remark_always(table: DraftTable) -> None:
    always = [column.name for column in table.columns if column.always and column.exact]
    if always:
        some = ", ".join(always[:12]) + (f" and {len(always) - 12} more" if len(always) > 12 else "")
        table.decide.append(f"in every object seen, so `required: true` with NOT NULL may fit: {some}")
