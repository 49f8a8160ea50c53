"""Faults inside a mapping that no single setting shows: names and fields with two purposes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Place = tuple[str, ...]
Fault = tuple[Place, str]


class Faults(ValueError):
    """What is wrong inside a part of the file, each with its place below that part."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = list(faults)
        super().__init__("; ".join(message for _, message in self.faults))


def distinct(own: Iterable[tuple[Place, str]], columns: Iterable[str]) -> Iterator[Fault]:
    """Find columns of a table that have two purposes; ``own`` has those beside ``columns``."""
    seen: dict[str, Place] = {}
    for place, name in own:
        if name in seen:
            yield place, f"column {name} is {'.'.join(seen[name])} already"
        seen.setdefault(name, place)
    for name in columns:
        if name in seen:
            yield ("columns", name), f"column {name} is {'.'.join(seen[name])} already"


def apart(paths: Iterable[tuple[Place, str]], id_: str | None = None) -> Iterator[Fault]:
    """Find fields that two columns or tables would hold: neither could then be read back alone."""
    paths = list(paths)
    seen: dict[str, Place] = {}
    for place, path in paths:
        if id_ and path.split(".")[0] == id_:
            yield place, f"field {path} is mapped, but {id_} has its own column"
        if path in seen:
            yield place, f"field {path} is mapped twice, by {'.'.join(seen[path])} too"
        seen.setdefault(path, place)
    for place, path in paths:
        for other in seen:
            if path.startswith(f"{other}."):
                yield place, f"field {path} lies inside {other}, which is mapped as a whole"
