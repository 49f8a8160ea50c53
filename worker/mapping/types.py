"""Column types as a mapping names them: ``text``, ``varchar(80)``, ``integer[]``, ``enum(status)``."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

SCALARS = (
    "text",
    "varchar",
    "enum",
    "uuid",
    "boolean",
    "smallint",
    "integer",
    "bigint",
    "double precision",
    "numeric",
    "timestamptz",
    "date",
    "bytea",
)
"""Every base but jsonb, which alone has no array: it holds arrays itself."""

IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_$]{0,62}")
_WRITTEN = re.compile(r"(?P<base>[a-z ]+)(?:\((?P<argument>[^()]*)\))?(?P<array>\[\])?")
_LONGEST = 10_485_760  # PostgreSQL's limit of n in varchar(n)


@dataclass(frozen=True, slots=True)
class ColumnType:
    """A type: ``base``, the length of a varchar or the name of an enumerated type, and whether an array."""

    base: str
    length: int | None = None
    name: str | None = None
    array: bool = False

    @property
    def sql(self) -> str:
        """Return the type as PostgreSQL reads it."""
        base = self.base
        if self.name is not None:
            base = f'"{self.name}"'
        elif self.length is not None:
            base = f"varchar({self.length})"
        return base + ("[]" if self.array else "")

    @property
    def element(self) -> ColumnType:
        """Return the type of an array's elements."""
        return ColumnType(self.base, self.length, self.name)


def parse_type(written: str) -> ColumnType:
    """Return the type that a mapping names; ValueError says what is wrong with it."""
    match = _WRITTEN.fullmatch(written.strip())
    base = match["base"].strip() if match else written
    if match is None or base not in (*SCALARS, "jsonb"):
        near = difflib.get_close_matches(base, (*SCALARS, "jsonb"), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(SCALARS)}, jsonb; arrays end in []"
        raise ValueError(f"no such type; {hint}")
    argument, array = match["argument"], match["array"] is not None
    if base == "jsonb" and array:
        raise ValueError("jsonb[] is not supported; jsonb holds arrays itself")
    if base == "varchar":
        if argument is None or not argument.isdecimal() or not 1 <= int(argument) <= _LONGEST:
            raise ValueError(f"write varchar(n), n from 1 to {_LONGEST}")
        return ColumnType(base, length=int(argument), array=array)
    if base == "enum":
        if argument is None or not IDENTIFIER.fullmatch(argument):
            raise ValueError("write enum(name), with the name of the type in PostgreSQL")
        return ColumnType(base, name=argument, array=array)
    if argument is not None:
        raise ValueError(f"{base} takes no argument here")
    return ColumnType(base, array=array)
