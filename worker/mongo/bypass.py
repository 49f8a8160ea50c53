"""Who may write past validators in MongoDB, which are its fence."""

from __future__ import annotations

from collections.abc import Collection as Some
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from worker.mongo.client import Client, told_clearly

_ACTIONS = frozenset({"bypassDocumentValidation", "anyAction"})
_AT_ONCE = 100  # users of one question


class Bypasser(NamedTuple):
    """A user who may bypass validation on a mapped collection. ``roles``: those that he was given."""

    user: str
    roles: Sequence[str]
    namespaces: Sequence[str]


class Bypassers(NamedTuple):
    """``nobody_logs_in``: MongoDB asks for no user, so that whoever reaches it may bypass validation."""

    users: Sequence[Bypasser]
    nobody_logs_in: bool


async def bypassers(client: Client, namespaces: Some[str]) -> Bypassers:
    """Return the users, but for our own, who may write these collections past their validators.

    MongoDB tells them to a user with viewUser on all databases.
    """
    with told_clearly():
        status: Any = await client.admin.command({"connectionStatus": 1})
        ours = {_name(one) for one in status["authInfo"]["authenticatedUsers"]}
        told: Any = await client.admin.command({"usersInfo": {"forAllDBs": True}})
        others = [{"user": u["user"], "db": u["db"]} for u in told["users"] if _name(u) not in ours]
        found: list[Bypasser] = []
        for first in range(0, len(others), _AT_ONCE):
            # MongoDB tells privileges only of users that are named.
            some = others[first : first + _AT_ONCE]
            told = await client.admin.command({"usersInfo": some, "showPrivileges": True})
            for user in told["users"]:
                if reached := [one for one in namespaces if _reaches(user["inheritedPrivileges"], one)]:
                    roles = sorted({_role(one) for one in user["roles"]})
                    found.append(Bypasser(_name(user), roles, reached))
    return Bypassers(sorted(found), not ours)


def _name(user: Mapping[str, Any]) -> str:
    return f"{user['user']}@{user['db']}"


def _role(role: Mapping[str, Any]) -> str:
    return f"{role['role']}@{role['db']}"


def _reaches(privileges: Sequence[Mapping[str, Any]], namespace: str) -> bool:
    database, _, collection = namespace.partition(".")
    return any(
        _ACTIONS.intersection(one["actions"]) and _is(one["resource"], database, collection)
        for one in privileges
    )


def _is(resource: Mapping[str, Any], database: str, collection: str) -> bool:
    if resource.get("anyResource"):
        return True
    if "db" not in resource or "collection" not in resource:  # the cluster, or a kind of system collections
        return False
    return resource["db"] in ("", database) and resource["collection"] in ("", collection)
