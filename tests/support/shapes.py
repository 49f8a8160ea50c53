"""Databases of three shapes: a shop, a blog, a telemetry store. Equal seeds make equal documents.

Each has what real ones have: fields that are missing, null or empty, values of another type, names that no
column can have, references that lead nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID

from bson import Binary, Code, Decimal128, Int64, MinKey, ObjectId, Regex, Timestamp
from motor.motor_asyncio import AsyncIOMotorDatabase

Document = dict[str, Any]
Database = dict[str, list[Document]]

_START = datetime(2024, 3, 1, tzinfo=UTC)
_WORDS = ["red", "green", "tall", "quiet", "old", "new", "small", "bright", "round", "plain", "heavy"]


class _Make:
    """Random values."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)

    def objectid(self) -> ObjectId:
        return ObjectId(self.random.randbytes(12))

    def uuid(self) -> UUID:
        return UUID(bytes=self.random.randbytes(16), version=4)

    def date(self) -> datetime:
        return _START + timedelta(milliseconds=self.random.randrange(10**10))

    def words(self, most: int = 6) -> str:
        return " ".join(self.random.choices(_WORDS, k=self.random.randint(1, most)))

    def sometimes(self, share: float) -> bool:
        return self.random.random() < share

    def price(self) -> Decimal128:
        return Decimal128(f"{self.random.randrange(1, 100_000) / 100:.2f}")


def shop(seed: int = 1, size: int = 300) -> Database:
    """Return tenants by ObjectId, customers with addresses, products, orders with lines; field tenantId."""
    make = _Make(seed)
    tenants = [
        {"_id": make.objectid(), "name": f"Shop {n}", "Created-On": make.date(), "limits": {"orders": n}}
        for n in range(4)
    ]
    products = [_product(make, number, make.random.choice(tenants)["_id"]) for number in range(size // 5)]
    customers = [_customer(make, number, make.random.choice(tenants)["_id"]) for number in range(size // 3)]
    orders = [
        _order(make, make.random.choice(customers), products, number)
        for number in range(size - len(customers))
    ]
    for document, odd in zip(orders[:8], _odd_fields(make), strict=False):
        document |= odd
    return {"tenants": tenants, "products": products, "customers": customers, "orders": orders}


def _product(make: _Make, number: int, tenant: ObjectId) -> Document:
    made: Document = {
        "_id": make.uuid(),
        "tenantId": tenant,
        "sku": f"SKU-{number:05}",
        "price": make.price(),
        "inStock": make.sometimes(0.8),
        "weight": round(make.random.uniform(0.1, 30), 3),
        "labels": make.random.sample(_WORDS, make.random.randint(0, 4)),
        "attributes": {make.random.choice(_WORDS): make.words(2) for _ in range(2)},
    }
    if number == 3:
        made["price"] = Decimal128("NaN")
    if number == 4:
        made["weight"] = math.inf
    return made


def _customer(make: _Make, number: int, tenant: ObjectId) -> Document:
    made: Document = {
        "_id": make.objectid(),
        "tenantId": tenant,
        "email": f"customer{number}@Example.com",
        "fullName": make.words(3),
        "vip": make.sometimes(0.1),
        "visits": make.random.randrange(500),
        "createdAt": make.date(),
        "addresses": [_address(make) for _ in range(make.random.randint(0, 3))],
        "order": {"by": "name", "limit": 20},
        "select": "reserved",
    }
    if make.sometimes(0.2):
        made["phone"] = None if make.sometimes(0.5) else "0123"
    if make.sometimes(0.1):
        del made["addresses"]
    if make.sometimes(0.02):
        made["visits"] = "many"
    return made


def _address(make: _Make) -> Document:
    made: Document = {"street": make.words(3), "zip": f"{make.random.randrange(100_000):05}", "geo": None}
    if make.sometimes(0.7):
        made["geo"] = {"lat": make.random.uniform(-90, 90), "lon": make.random.uniform(-180, 180)}
    return made


def _order(make: _Make, customer: Document, products: list[Document], number: int) -> Document:
    own = [product for product in products if product["tenantId"] == customer["tenantId"]] or products
    made: Document = {
        "_id": make.objectid(),
        "tenantId": customer["tenantId"],
        "customerId": customer["_id"],
        "number": Int64(10**10 + number),
        "status": make.random.choice(["open", "paid", "sent"]),
        "orderedAt": make.date(),
        "dueOn": make.date().replace(hour=0, minute=0, second=0, microsecond=0),
        "total": make.price(),
        "ship-to": _address(make),
        "lines": [
            {
                "productId": make.random.choice(own)["_id"],
                "quantity": make.random.randint(1, 9),
                "price": make.price(),
                "options": [make.words(1) for _ in range(make.random.randint(0, 2))],
                "position": place,
            }
            for place in range(make.random.randint(0, 5))
        ],
    }
    if number % 50 == 7:
        made["lines"] = None
    if number % 50 == 8:
        made["lines"].append("a gift")
    if number % 50 == 9:
        made["total"] = 12.5
    return made


def _odd_fields(make: _Make) -> list[Document]:
    """Return fields with names and values that no column can have."""
    return [
        {"a.b": 1, "": "empty", "$set": {"x": 1}},
        {"note\nwith newline": "x", "naïve–name": True, "1st": 1},
        {"rest": "mine", "id": 5, "tenant_id": "no tenant"},
        {"status": "nul\0here", "dueOn": None},
        {"pattern": Regex("a.*b", "i"), "least": MinKey(), "at": Timestamp(1, 2)},
        {"code": Code("return 1"), "old": Binary(make.random.randbytes(16), 3)},
        {"customer": {"name": {"first": make.words(1)}}, "drop table orders; --": 1},
        {"deep": {"a": {"b": {"c": {"d": [[1, [2]], {"e": [{}]}]}}}}, "x" * 70: 1, "x" * 69 + "y": 2},
    ]


def blog(seed: int = 1, size: int = 200) -> Database:
    """Return authors and posts with comments, replies in them and reactions in those; field site.org."""
    make = _Make(seed)
    authors = [
        {"_id": make.uuid(), "site": {"org": f"org-{n % 3}"}, "name": make.words(2), "bio": make.words(40)}
        for n in range(12)
    ]
    posts = [_post(make, number, authors) for number in range(size)]
    return {"authors": authors, "posts": posts, "drafts": []}


def _post(make: _Make, number: int, authors: list[Document]) -> Document:
    author = make.random.choice(authors)
    made: Document = {
        "_id": make.objectid(),
        "site": {"org": author["site"]["org"], "theme": make.random.choice(_WORDS)},
        "authorId": author["_id"],
        "coAuthors": [one["_id"] for one in make.random.sample(authors, make.random.randint(0, 2))],
        "slug": f"post-{number}",
        "title": make.words(),
        "body": make.words(60),
        "tags": make.random.sample(_WORDS, make.random.randint(0, 3)),
        "publishedAt": make.date() if make.sometimes(0.8) else None,
        "comments": [_comment(make, authors) for _ in range(make.random.randint(0, 4))],
        "views": {make.date().strftime("%Y-%m-%d"): make.random.randrange(99) for _ in range(3)},
    }
    if number % 40 == 1:
        made["tags"] = "single"
    if number % 40 == 2:
        made["tags"] = ["a", None, 3]
    if number % 40 == 3:
        del made["comments"]
    if number % 40 == 4:
        made["comments"] = {"closed": True}
    if number == 5:
        made["publishedAt"] = datetime(1, 1, 1, tzinfo=UTC)
    return made


def _comment(make: _Make, authors: list[Document]) -> Document:
    made: Document = {
        "_id": make.objectid(),
        "by": make.random.choice(authors)["_id"],
        "text": make.words(12),
        "at": make.date(),
        "replies": [
            {
                "text": make.words(8),
                "reactions": [
                    {"kind": make.random.choice(["like", "laugh"]), "n": make.random.randint(1, 9)}
                    for _ in range(make.random.randint(0, 3))
                ],
            }
            for _ in range(make.random.randint(0, 3))
        ],
    }
    if make.sometimes(0.1):
        made["replies"] = make.random.choice([None, []])
    if make.sometimes(0.05) and made["replies"]:
        made["replies"][0]["reactions"] = None
        made["replies"].append({})
    return made


def telemetry(seed: int = 1, size: int = 300) -> Database:
    """Return devices and readings with text ids, values of mixed types, no tenant but of devices: owner."""
    make = _Make(seed)
    devices = [
        {
            "_id": f"dev-{n:03}",
            "owner": make.random.randint(1, 3),
            "model": make.words(1),
            "seen": make.date(),
        }
        for n in range(20)
    ]
    readings = [_reading(make, number, devices) for number in range(size)]
    return {"devices": devices, "readings": readings}


def _reading(make: _Make, number: int, devices: list[Document]) -> Document:
    device = make.random.choice(devices)["_id"]
    kinds: list[Callable[[], Any]] = [
        lambda: make.random.randrange(100),
        lambda: make.random.uniform(0, 100),
        lambda: make.words(1),
        lambda: make.sometimes(0.5),
        lambda: None,
    ]
    made: Document = {
        "_id": f"{device}/{number}",
        "deviceId": device,
        "at": make.date().isoformat(),
        "value": make.random.choice(kinds)(),
        "level": make.random.randrange(10) if make.sometimes(0.6) else make.random.uniform(0, 10),
        "samples": [make.random.uniform(-1, 1) for _ in range(make.random.randint(0, 6))],
        "counts": [make.random.randrange(2**40) for _ in range(make.random.randint(0, 3))],
        "payload": {
            "battery": {"volts": make.random.uniform(3, 4), "cycles": make.random.randrange(900)},
            "flags": [make.sometimes(0.5), make.random.randrange(3), make.words(1)],
            "errors": {f"E{make.random.randrange(10_000)}": make.words(2) for _ in range(2)},
        },
        "matrix": [[make.random.randrange(9) for _ in range(3)] for _ in range(2)],
    }
    if number % 60 == 3:
        made["payload"] = "lost"
    if number % 60 == 4:
        made["samples"] = [math.nan, -0.0, math.inf, None]
    if number % 60 == 5:
        made["level"] = Int64(2**60 + 1)
    if number % 60 == 6:
        made["_id"] = {"device": device, "n": number}
    if number % 60 == 7:
        made["_id"] = number
    return made


async def load(database: AsyncIOMotorDatabase[Any], content: Database) -> None:
    """Put a shape's documents into MongoDB; a collection without any is created too."""
    for name, documents in content.items():
        await database.create_collection(name)
        if documents:
            await database[name].insert_many(documents)
