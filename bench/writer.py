"""The application's writes, as a process of its own: `python -m bench.writer ORDER`, an `Order` as JSON.

It prints a `Written` as JSON. Its write concern is MongoDB's default (majority).
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal, TypeVar

import orjson
from pymongo import DeleteOne, InsertOne, MongoClient, UpdateOne
from pymongo.collection import Collection

from bench.changes import Change, Live, page_id, plan
from examples.spaces.generate import Generator
from examples.spaces.shapes import CODEC

BULK = 1000
CONNECTIONS = 16  # of the steady writer: a majority write waits for the journal
TENANTS = 20
_UPDATE = {"$inc": {"version": 1}, "$set": {"status": "review"}}  # every one counts: see `bench.check`
Pages = Collection[dict[str, Any]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Order:
    """What to write.

    ``load``: the pages of ``live``. ``bulk``: ``changes`` as fast as they go, in bulk writes of `BULK`.
    ``steady``: ``changes`` one by one, ``rate`` a second.
    """

    uri: str
    database: str
    seed: int
    how: Literal["load", "bulk", "steady"]
    live: Live
    changes: int = 0
    rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Written:
    """What was written. Times are seconds since 1970."""

    began: float
    ended: float
    cluster_time: int  # of a moment after the last write; as Crossfade stores it
    cpu_seconds: float
    peak_mb: float
    times: list[tuple[int, float]]  # steady: of each change its page, and the time before the write
    write_ms: list[float]  # steady: how long each write took


def write(order: Order) -> Written:
    """Carry out an order."""
    began = time.time()
    times: list[tuple[int, float]] = []
    write_ms: list[float] = []
    with MongoClient[dict[str, Any]](order.uri) as client:
        pages = client[order.database].get_collection("pages", codec_options=CODEC)
        generator = Generator(order.seed)
        if order.how == "load":
            _load(pages, generator, order.live)
        elif order.how == "bulk":
            _bulk(pages, generator, order)
        else:
            times, write_ms = _steady(pages, generator, order)
        ended = time.time()
        after = client.admin.command("ping")["operationTime"]
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Written(
        began=began,
        ended=ended,
        cluster_time=after.time << 32 | after.inc,
        cpu_seconds=used.ru_utime + used.ru_stime,
        peak_mb=used.ru_maxrss / 1024,
        times=times,
        write_ms=write_ms,
    )


def _load(pages: Pages, generator: Generator, live: Live) -> None:
    for numbers in _batches(range(live.low, live.high)):
        pages.insert_many((generator.page(number, TENANTS) for number in numbers), ordered=False)


def _bulk(pages: Pages, generator: Generator, order: Order) -> None:
    """Unordered, so that each bulk is three commands: its inserts, its updates, its deletes."""
    for changes in _batches(plan(order.live, order.changes)):
        pages.bulk_write([_request(generator, change) for change in changes], ordered=False)


def _steady(pages: Pages, generator: Generator, order: Order) -> tuple[list[tuple[int, float]], list[float]]:
    """Write every change at its time, or as soon after it as one of the connections is free."""
    changes = list(plan(order.live, order.changes))
    inserted = {c.number: generator.page(c.number, TENANTS) for c in changes if c.kind == "insert"}
    start = time.time() + 0.1

    def one(position: int) -> tuple[tuple[int, float], float]:
        kind, number = changes[position]
        time.sleep(max(0.0, start + position / order.rate - time.time()))
        before = time.time()
        if kind == "insert":
            pages.insert_one(inserted[number])
        elif kind == "update":
            pages.update_one({"_id": page_id(number)}, _UPDATE)
        else:
            pages.delete_one({"_id": page_id(number)})
        return (number, before), (time.time() - before) * 1000

    with ThreadPoolExecutor(CONNECTIONS) as connections:
        written = list(connections.map(one, range(len(changes))))
    return [stamp for stamp, _ in written], [took for _, took in written]


def _request(generator: Generator, change: Change) -> Any:
    if change.kind == "insert":
        return InsertOne(generator.page(change.number, TENANTS))
    if change.kind == "delete":
        return DeleteOne({"_id": page_id(change.number)})
    return UpdateOne({"_id": page_id(change.number)}, _UPDATE)


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, BULK)):
        yield batch


def order_from(text: str | bytes) -> Order:
    """Return the order in a command line's JSON."""
    fields = orjson.loads(text)
    return Order(**{**fields, "live": Live(**fields["live"])})


def written_from(text: bytes) -> Written:
    """Return what a writer printed."""
    return Written(**orjson.loads(text))


if __name__ == "__main__":
    sys.stdout.buffer.write(orjson.dumps(asdict(write(order_from(sys.argv[1])))))
