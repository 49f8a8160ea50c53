"""Finds for a field what should hold it in PostgreSQL, from the profile of its values.

A type is chosen only where nearly all values fit it; the others go to the rest column, exactly. Whatever a
person should decide is said.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from worker.inspect.profile import Profile

FITTING = 0.95
"""The share of the values that must fit a type."""
_MOST_FIELDS = 30  # of an object whose fields become columns
_LABELS = 12
_MANY = 100
_LONG = 10_000  # characters
_COUNTER = 2**30  # beyond it an integer may soon be too narrow
_EXACT_DOUBLE = 2**53
_NO_COLUMN = ("regex", "timestamp", "dbRef", "minKey", "maxKey", "javascript", "javascriptWithScope")


class Holder(StrEnum):
    """What holds a field's values."""

    COLUMN = "column"
    FIELDS = "fields"  # an object's fields are columns of the same table
    TABLE = "table"  # an array's elements are rows of a child table
    REST = "rest"


@dataclass(slots=True)
class Choice:
    """``exact``: every value seen fits the column. ``decide``: what a person should look at."""

    holder: Holder
    type: str = ""
    exact: bool = True
    decide: list[str] = field(default_factory=list)


def percent(part: int, whole: int) -> str:
    """Return a share for a person."""
    share = 100 * part / whole if whole else 0
    return f"{share:.0f} %" if share in (0, 100) or 1 <= share <= 99 else f"{share:.1f} %"


def choose(profile: Profile) -> Choice:
    """Return what should hold these values."""
    values = profile.values
    if not values:
        return Choice(Holder.COLUMN, "jsonb", decide=["only null was seen"])
    choice = _fitting(profile)
    if choice is None:
        return _mixed(profile)
    return choice


def _fitting(profile: Profile) -> Choice | None:
    """Return the choice for values of (nearly) one type."""
    values, of = profile.values, profile.of
    enough = FITTING * values
    for kinds, type_ in (
        (("string",), "text"),
        (("bool",), "boolean"),
        (("double",), "double precision"),
        (("decimal",), "numeric"),
        (("date",), "timestamptz"),
        (("uuid", "objectId"), "uuid"),
        (("binary",), "bytea"),
    ):
        if of(*kinds) >= enough:
            return _column(profile, type_, of(*kinds))
    integers = of("int", "long")
    if integers >= enough:
        return _column(profile, _integer(profile), integers)
    if (numbers := integers + of("double")) >= enough and _small(profile):
        told = f"integers ({percent(integers, values)}) and doubles; of integers the rest column keeps a note"
        return _column(profile, "double precision", numbers, told, exact=False)
    if of("decimal") and (numbers := numbers + of("decimal")) >= enough:
        told = "numbers of several types; numeric holds their values, the rest column keeps their types"
        return _column(profile, "numeric", numbers, told, exact=False)
    if profile.objects >= enough:
        return _object(profile)
    if of("array") >= enough:
        return _array(profile)
    return None


def _column(
    profile: Profile, type_: str, fitting: int, told: str | None = None, exact: bool = True
) -> Choice:
    decide = [told] if told else []
    if others := profile.values - fitting:
        decide.append(f"{_others(profile, others)} of another type: kept in the rest column, NULL here")
    if profile.nuls:
        decide.append("some texts hold a NUL, which PostgreSQL cannot: kept in the rest column")
    if type_ == "text":
        decide.extend(_of_strings(profile))
    if type_ == "timestamptz" and fitting >= 10 and profile.midnights == fitting:
        decide.append("always midnight: date may fit better")
    return Choice(Holder.COLUMN, type_, exact and not others and not profile.nuls, decide)


def _others(profile: Profile, others: int) -> str:
    return f"{others} of {profile.values} values ({percent(others, profile.values)})"


def _of_strings(profile: Profile) -> list[str]:
    strings, told = profile.kinds["string"], list[str]()
    if profile.date_texts >= FITTING * strings:
        told.append("texts that read as dates: timestamptz would need the documents changed first")
    elif profile.id_texts >= FITTING * strings:
        told.append("texts that read as ids: a uuid column would need the documents changed first")
    elif strings >= _MANY and profile.different <= _LABELS:
        told.append(f"{profile.different} different text(s): enum(name) or a CHECK may fit")
    if profile.longest > _LONG:
        told.append(f"up to {profile.longest} characters")
    return told


def _integer(profile: Profile) -> str:
    assert profile.least is not None and profile.greatest is not None
    wide = profile.kinds["long"] or max(-profile.least, profile.greatest) >= _COUNTER
    return "bigint" if wide else "integer"


def _small(profile: Profile) -> bool:
    """Whether doubles hold every integer seen."""
    least, greatest = profile.least or 0, profile.greatest or 0
    return least >= -_EXACT_DOUBLE and greatest <= _EXACT_DOUBLE


def _object(profile: Profile) -> Choice:
    if profile.like_a_map:
        return _jsonb("the names in it look like data, as in a map")
    if not profile.fields:
        return _jsonb("only empty objects were seen")
    if len(profile.fields) > _MOST_FIELDS:
        return _jsonb(f"{len(profile.fields)} different fields: too many for columns")
    return Choice(Holder.FIELDS, decide=_exceptions(profile, profile.objects))


def _array(profile: Profile) -> Choice:
    elements = profile.elements
    if elements is None or not elements.values:
        return _jsonb("only empty arrays, or nulls in them, were seen")
    inner = _fitting(elements)
    if inner is None or elements.of("array") >= FITTING * elements.values:
        return _jsonb(f"arrays of {kinds_of(elements)}")
    exceptions = _exceptions(profile, profile.of("array"))
    if inner.holder is Holder.FIELDS:
        return Choice(Holder.TABLE, decide=exceptions + _exceptions(elements, elements.objects))
    if elements.objects >= FITTING * elements.values:
        # A map as an element, or one with very many fields, is still a row: its table has fewer columns.
        if elements.like_a_map or not elements.fields:
            return _jsonb("arrays of objects without regular fields")
        return Choice(Holder.TABLE, decide=exceptions)
    exact = inner.exact and not exceptions
    return Choice(Holder.COLUMN, f"{inner.type}[]", exact, exceptions + inner.decide)


def _exceptions(profile: Profile, fitting: int) -> list[str]:
    others = profile.values - fitting
    return [f"{_others(profile, others)} of another type: kept in the rest column"] if others else []


def _mixed(profile: Profile) -> Choice:
    odd = profile.of(*_NO_COLUMN) + sum(
        n for kind, n in profile.kinds.items() if kind.startswith(("binary(", "date beyond"))
    )
    if encrypted := profile.kinds["encrypted"]:
        told = f"{percent(encrypted, profile.values)} encrypted by the client: kept as they are"
        return Choice(Holder.REST, decide=[f"{told}; PostgreSQL has no such encryption"])
    if odd > profile.values / 2:
        return Choice(Holder.REST, decide=[f"no column type for {kinds_of(profile)}"])
    return _jsonb(f"mixed types: {kinds_of(profile)}")


def kinds_of(profile: Profile) -> str:
    """Return the types with their shares, in words."""
    kinds = [(kind, n) for kind, n in profile.kinds.most_common() if kind != "null"]
    return ", ".join(f"{kind} {percent(n, profile.values)}" for kind, n in kinds)


def _jsonb(told: str) -> Choice:
    return Choice(Holder.COLUMN, "jsonb", decide=[told])


def different(profile: Profile) -> str:
    """Return the number of different scalars for a person."""
    return f"{profile.different} or more" if profile.more_different else str(profile.different)
