"""Names for PostgreSQL from MongoDB's, and names of MongoDB's that can be written safely."""

from __future__ import annotations

import json
import re
import unicodedata

import yaml

from worker.mapping.types import IDENTIFIER

_LONGEST = 55  # leaves room for what is put behind
# Every table has these already.
_SYSTEM_COLUMNS = {"tableoid", "xmin", "xmax", "cmin", "cmax", "ctid"}
_SHOWN = 80


def snake(name: str) -> str:
    """Return a name as PostgreSQL's are written: ``createdAt`` is ``created_at``."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    words = re.sub(r"([a-z0-9])([A-Z])|([A-Z]+)([A-Z][a-z])", r"\1\3_\2\4", plain)
    made = re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")[:_LONGEST].rstrip("_")
    if not made:
        return "field"
    return f"f_{made}" if made[0].isdigit() else made


def singular(name: str) -> str:
    """Return the name of one of many, where English is regular."""
    for many, one in (("ies", "y"), ("sses", "ss"), ("xes", "x"), ("ches", "ch"), ("shes", "sh")):
        if name.endswith(many) and len(name) > len(many) + 1:
            return name[: -len(many)] + one
    if name.endswith("s") and not name.endswith(("ss", "us", "is")) and len(name) > 2:
        return name[:-1]
    return name


class Names:
    """Gives every name once."""

    def __init__(self, *taken: str) -> None:
        self._taken = set(taken)

    def new(self, wanted: str) -> str:
        """Return the name, with a number behind it where it is taken."""
        wanted = wanted[:_LONGEST].rstrip("_")
        if wanted.startswith("pg_"):  # the system's own would be found first
            wanted = f"t_{wanted}"
        name, number = wanted, 2
        while name in self._taken:
            name, number = f"{wanted}_{number}", number + 1
        self._taken.add(name)
        assert IDENTIFIER.fullmatch(name)
        return name


def column_names(*own: str) -> Names:
    """Return the names of a table's columns; ``own`` are taken."""
    return Names(*own, *_SYSTEM_COLUMNS)


def mappable(name: str) -> bool:
    """Whether a mapping's paths can name this field: with a dot or ``$`` in it they cannot."""
    return bool(name) and "." not in name and not name.startswith("$") and name.isprintable()


def shown(name: str) -> str:
    """Return a name of MongoDB's for a comment: in one line, whatever it holds."""
    text = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in name)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def yaml_text(text: str) -> str:
    """Return printable text as YAML reads it back."""
    plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", text)
    return text if plain and yaml.safe_load(text) == text else json.dumps(text, ensure_ascii=False)


def quoted(name: str) -> str:
    """Return an identifier as SQL reads it."""
    assert IDENTIFIER.fullmatch(name)
    return f'"{name}"'
