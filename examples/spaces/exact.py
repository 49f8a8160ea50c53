"""Where two documents differ, to the last bit, but for the order of fields and the width of integers."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from bson import Code, DBRef

_MISSING = object()


def differing_paths(left: Any, right: Any, path: str = "") -> Iterator[str]:
    """Yield the paths at which two values differ, such as ``content.blocks.0.text``."""
    if isinstance(left, dict) and isinstance(right, dict):
        before = f"{path}." if path else ""
        for name, value in left.items():
            yield from differing_paths(value, right.get(name, _MISSING), before + name)
        for name in right.keys() - left.keys():
            yield before + name
    elif isinstance(left, list) and isinstance(right, list):
        for position, (one, other) in enumerate(zip(left, right, strict=False)):
            yield from differing_paths(one, other, f"{path}.{position}")
        for position in range(min(len(left), len(right)), max(len(left), len(right))):
            yield f"{path}.{position}"
    elif type(left) is type(right) and isinstance(left, DBRef | Code):
        # Their own comparison takes 1 for 1.0 inside them.
        if next(differing_paths(_parts(left), _parts(right)), None) is not None:
            yield path
    elif not _same(left, right):
        yield path


def _parts(value: DBRef | Code) -> dict[str, Any]:
    return value.as_doc() if isinstance(value, DBRef) else {"code": str(value), "scope": value.scope}


def _same(left: Any, right: Any) -> bool:
    if type(left) is type(right):
        # -0.0 == 0.0, and a NaN is not itself.
        return left == right if type(left) is not float else struct.pack("d", left) == struct.pack("d", right)
    # Int64 is a kind of int, and so, in Python, is bool.
    integers = isinstance(left, int) and isinstance(right, int)
    return integers and not isinstance(left, bool) and not isinstance(right, bool) and left == right
