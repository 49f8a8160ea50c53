"""Example records: one JSON file each, readable beside the exact bytes that travel.

| member | meaning |
|---|---|
| `holds` | what the record says, in words |
| `topic` | the topic that it belongs to, with the prefix `crossfade` |
| `partition` | `of`: partitions of the topic, `is`: the record's; missing where it goes to every partition |
| `key`, `value` | key and value as canonical Extended JSON, fields in the order in which they are encoded |
| `key_hex`, `value_hex` | the same as bytes, in lines of 32 |

The bytes are the contract: records in a topic outlive the program that wrote them. They change only with
`ENVELOPE_VERSION`, and then the old files stay as long as old records are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from bson import json_util
from bson.binary import UuidRepresentation
from bson.codec_options import DatetimeConversion

_READABLE = json_util.JSONOptions(
    json_mode=json_util.JSONMode.CANONICAL,
    uuid_representation=UuidRepresentation.STANDARD,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
    tz_aware=True,
)


@dataclass(frozen=True, slots=True)
class Example:
    """One file: the readable fields as Python holds them, and the bytes."""

    name: str
    topic: str
    partition: tuple[int, int] | None
    """The record's partition and the number of partitions; None where it goes to every partition."""
    key: Mapping[str, Any]
    value: Mapping[str, Any]
    key_bytes: bytes
    value_bytes: bytes


def read_examples() -> list[Example]:
    """Return every example, in the order of the files' names."""
    found = [file for file in files(__name__).iterdir() if file.name.endswith(".json")]
    return [
        _example(file.name.removesuffix(".json"), file.read_text("utf-8"))
        for file in sorted(found, key=lambda file: file.name)
    ]


def _example(name: str, text: str) -> Example:
    plain: dict[str, Any] = json.loads(text)
    typed: dict[str, Any] = json_util.loads(text, json_options=_READABLE)
    place = plain.get("partition")
    return Example(
        name=name,
        topic=plain["topic"],
        partition=None if place is None else (place["is"], place["of"]),
        key=typed["key"],
        value=typed["value"],
        key_bytes=bytes.fromhex("".join(plain["key_hex"])),
        value_bytes=bytes.fromhex("".join(plain["value_hex"])),
    )
