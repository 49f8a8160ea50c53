"""Every document against its rows, by code that shares nothing with the program."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import asyncpg
from bson import ObjectId

TABLES = {
    "tenants": ("tenants", {"name": "name", "subdomain": "subdomain", "settings": "settings"}),
    "users": ("users", {"email": "email", "name": "name", "profile": "profile", "login_count": "loginCount"}),
    "passwords": ("user_passwords", {"user_id": "userId", "password_hash": "hash"}),
    "pages": ("pages", {"title": "title", "content": "content", "seo": "seo", "version": "version"}),
    "forms": ("form_configs", {"name": "name", "fields": "fields", "submit_count": "submitCount"}),
    "leads": ("leads", {"email": "email", "form_id": "formId", "score": "score", "updated_at": "updatedAt"}),
}


def row_id(value: Any) -> Any:
    """Bits of the ObjectId around a UUIDv8's version and variant, written out as a string of bits."""
    if not isinstance(value, ObjectId):
        return value
    bits = f"{int(str(value), 16):096b}"
    mark = f"{int.from_bytes(b'xfo', 'big'):026b}"
    return UUID(int=int(bits[:48] + "1000" + bits[48:60] + "10" + bits[60:] + mark, 2))


def _same(document_value: Any, column_value: Any) -> bool:
    if isinstance(document_value, ObjectId):
        return row_id(document_value) == column_value
    if isinstance(document_value, dict | list):
        return json.loads(column_value) == json.loads(json.dumps(document_value, default=_plain))
    return document_value == column_value


def _plain(value: Any) -> str:
    if hasattr(value, "isoformat"):
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return str(value)


async def differences(database: Any, postgres: asyncpg.Connection) -> list[str]:
    """Return what differs, by collection and id; empty when both sides are equal."""
    found: list[str] = []
    for collection, (table, fields) in TABLES.items():
        rows = {row["id"]: row for row in await postgres.fetch(f"SELECT * FROM {table}")}  # noqa: S608
        async for document in database[collection].find():
            row = rows.pop(row_id(document["_id"]), None)
            if row is None:
                found.append(f"{collection} {document['_id']}: missing")
                continue
            for column, field in fields.items():
                if not _same(document.get(field), row[column]):
                    found.append(f"{collection} {document['_id']}: {field} differs")
            tenant = document.get("tenantId", document["_id"])
            if row.get("tenant_id", row["id"]) != tenant:
                found.append(f"{collection} {document['_id']}: wrong tenant")
        found += [f"{collection} {extra}: extra row" for extra in rows]
    activities = await postgres.fetch("SELECT lead_id, position, type FROM lead_activities ORDER BY 1, 2")
    by_lead: dict[UUID, list[Any]] = {}
    for lead, position, kind in activities:
        assert position == len(by_lead.setdefault(lead, []))
        by_lead[lead].append(kind)
    async for lead in database["leads"].find({}, {"activities": 1}):
        kinds = [activity.get("type") for activity in lead.get("activities") or []]
        if by_lead.pop(lead["_id"], []) != kinds:
            found.append(f"leads {lead['_id']}: activities differ")
    return found + [f"lead_activities of {lead}: orphaned" for lead in by_lead]
