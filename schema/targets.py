"""A target: a directory of numbered SQL files, ours in this package or a user's own."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

BUILT_IN = ("control", "spaces")
"""The targets that come with Crossfade: its own tables, and the reference application's."""

FILE_NAME = re.compile(r"(?P<number>\d{3})_(?P<name>[a-z0-9_]+)\.sql")
DOLLAR_QUOTED = re.compile(r"(\$\w*\$).*?\1", re.DOTALL)
COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
TRANSACTION = re.compile(
    r"(?:^|;)\s*(BEGIN|START\s+TRANSACTION|COMMIT|ROLLBACK)(?:\s+(?:WORK|TRANSACTION))?\s*(?=;)",
    re.IGNORECASE,
)


class MigrationError(Exception):
    """The schema cannot be brought to where its files say; the database is as it was before that file."""


class BadTarget(MigrationError):
    """The files of a target do not make a sequence that can be applied."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered SQL file. The checksum is that of its text, whatever its line ends."""

    target: str
    number: int
    name: str
    sql: str
    checksum: str

    @property
    def file(self) -> str:
        """Return the file's name as it is in messages: ``spaces/001_tables.sql``."""
        return f"{self.target}/{self.number:03d}_{self.name}.sql"


@dataclass(frozen=True, slots=True)
class Target:
    """A named sequence of migrations, numbered from 1 without a gap."""

    name: str
    migrations: tuple[Migration, ...]


def read_target(target: str | Path) -> Target:
    """Read a built-in target by its name, or a user's by its directory, whose name becomes the target's.

    Raises BadTarget when there is no such directory, when its name is a built-in one's, or when the files in
    it are not numbered 001, 002, ... each once. Files with other endings are left alone.
    """
    if isinstance(target, str) and target in BUILT_IN:
        return Target(target, _read(files("schema") / target, target))
    directory = Path(target).resolve()
    if not directory.is_dir():
        raise BadTarget(f"no target {target}: name one of {', '.join(BUILT_IN)}, or a directory of SQL files")
    if directory.name in BUILT_IN:
        raise BadTarget(f"{target}: {directory.name} is the name of a target of ours; rename the directory")
    return Target(directory.name, _read(directory, directory.name))


def _read(directory: Traversable, target: str) -> tuple[Migration, ...]:
    entries = {entry.name: entry for entry in directory.iterdir() if entry.name.endswith(".sql")}
    if not entries:
        raise BadTarget(f"{target}: the directory holds no SQL file")
    return tuple(_migration(target, entries[name], place) for place, name in enumerate(sorted(entries), 1))


def _migration(target: str, entry: Traversable, place: int) -> Migration:
    match = FILE_NAME.fullmatch(entry.name)
    if match is None:
        raise BadTarget(f"{target}/{entry.name}: name it like 001_what_it_does.sql")
    if int(match["number"]) != place:
        raise BadTarget(f"{target}/{entry.name}: {place:03d} is expected here; no number twice, and no gap")
    sql = entry.read_text(encoding="utf-8").replace("\r\n", "\n")
    _refuse_transactions(f"{target}/{entry.name}", sql)
    return Migration(target, place, match["name"], sql, hashlib.sha256(sql.encode()).hexdigest())


def _refuse_transactions(file: str, sql: str) -> None:
    # A COMMIT inside the file would end our transaction: its first half would stay although the second
    # failed, and no later run could get past it.
    statement = TRANSACTION.search(COMMENT.sub("", DOLLAR_QUOTED.sub("", sql)))
    if statement is not None:
        raise BadTarget(
            f"{file}: remove {statement[1].upper()}; each file is applied in a transaction of its own"
        )
