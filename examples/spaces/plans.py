"""What the live application does next: small, realistic changes, as steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from uuid import UUID

from bson import ObjectId

from examples.spaces import edits
from examples.spaces.known import LOOSE_ROLE, LOOSE_SLUG, Known, Pool, stamp_of
from examples.spaces.shapes import EPOCH, Document, Shapes
from examples.spaces.steps import Clock, Do, Step

# What the application does, and how often; each is a method of Planner.
KINDS = {
    "assign": 40,
    "nullify": 4,
    "remove_field": 5,
    "push": 12,
    "pop": 5,
    "replace": 5,
    "insert": 12,
    "delete": 5,
    "reinsert": 3,
    "move": 2,
    "submit_form": 4,
    "add_user": 2,
    "delete_user": 1,
    "revise": 3,
    "redo": 1,
}
_SHARES = {"tenants": 1, "users": 25, "passwords": 4, "forms": 5, "pages": 30, "leads": 35}
_LIMIT = 5000


class Planner:
    """Chooses documents and what happens to them. The documents of a plan are its own until it is settled."""

    def __init__(self, rng: Random, ids: Random, allows: Callable[[UUID], bool]) -> None:
        self._rng = rng
        self._make = Shapes(rng, ids)
        self._clock = Clock()
        self._allows = allows
        self._pools = {name: Pool(rng, _LIMIT) for name in _SHARES}
        self._deleted = Pool(rng, _LIMIT // 10)
        self._users: dict[UUID, list[UUID]] = {}
        self._forms: dict[UUID, list[ObjectId]] = {}
        self._tenants: list[UUID] = []

    def learn(self, sampled: dict[str, list[Known]]) -> None:
        """Begin with documents of the database. Its users and forms that are not loose may be referred to."""
        self._tenants = [known.id for known in sampled["tenants"]]
        if not self._tenants:
            raise ValueError("the database has no tenants: load some documents first")
        for name, documents in sampled.items():
            for known in documents:
                self._pools[name].give(known)
        for name, referable in (("users", self._users), ("forms", self._forms)):
            for known in sampled[name]:
                if not known.loose:
                    referable.setdefault(known.tenant, []).append(known.id)

    def plan(self, kind: str) -> list[Step]:
        """Return the steps of a change of this kind, of an insert when no document fits, or none at all."""
        return getattr(self, f"_{kind}")() or self._insert()

    def settle(self, steps: Sequence[Step], documents: Sequence[Document | None]) -> None:
        """Take note of the states that the steps have led to and give the documents back."""
        for step, document in zip(steps, documents, strict=True):
            if document is not None:
                step.known.see(document)
        for last in _owned(steps):
            gone = last.do is Do.DELETE
            (self._deleted if gone else self._pools[last.collection]).give(last.known)

    def release(self, steps: Sequence[Step]) -> None:
        """Give the documents of steps that were not done back, as they are known."""
        if steps[0].do is not Do.INSERT:
            for last in _owned(steps):
                self._pools[last.collection].give(last.known)

    def _take(self, names: Sequence[str], fits: Callable[[Known], bool] = lambda known: True) -> Known | None:
        name = self._rng.choices(names, [_SHARES[name] for name in names])[0]
        return self._pools[name].take(lambda known: fits(known) and self._allows(known.tenant))

    def _tenant(self) -> UUID | None:
        for _ in range(16):
            tenant = self._make.pick(self._tenants)
            if self._allows(tenant):
                return tenant
        return None

    def _fresh(self, collection: str, tenant: UUID, loose: bool) -> Document:
        users = self._users.get(tenant, [])
        if collection == "users":
            return self._make.user(tenant, LOOSE_ROLE if loose else None)
        if collection == "forms":
            return self._make.form(tenant, LOOSE_SLUG if loose else "form")
        if collection == "pages":
            return self._make.page(tenant, self._make.pick(users) if users else None)
        forms = self._forms.get(tenant)
        return self._make.lead(tenant, self._make.pick(forms) if forms else None, users)

    def _insertion(self, collection: str, tenant: UUID, again: Known | None = None) -> Step:
        document = self._fresh(collection, tenant, loose=True)
        known = again or Known(collection, document["_id"], tenant, EPOCH, loose=True)
        stamp = document[stamp_of(collection)] = self._clock.stamp()
        return Step(Do.INSERT, known, EPOCH, stamp, document | {"_id": known.id})

    def _password_of(self, user: Known, tenant: UUID) -> Step:
        document = self._make.password(tenant, user.id)
        user.password = user.password or Known("passwords", document["_id"], tenant, EPOCH, loose=True)
        stamp = document["changedAt"] = self._clock.stamp()
        return Step(Do.INSERT, user.password, EPOCH, stamp, document | {"_id": user.password.id})

    def _update(self, known: Known | None, make: Callable[[Known], Document]) -> list[Step]:
        if known is None:
            return []
        stamp, operators = self._clock.stamp(), make(known)
        operators["$set"] = operators.get("$set", {}) | {stamp_of(known.collection): stamp}
        return [Step(Do.UPDATE, known, known.stamp, stamp, operators)]

    def _assign(self) -> list[Step]:
        known = self._take(list(_SHARES))
        return self._update(known, lambda known: edits.assign(self._make, known.collection))

    def _nullify(self) -> list[Step]:
        known = self._take(list(edits.NULLABLE))
        return self._update(
            known, lambda known: {"$set": {self._make.pick(edits.NULLABLE[known.collection]): None}}
        )

    def _remove_field(self) -> list[Step]:
        known = self._take(list(edits.OPTIONAL))
        return self._update(
            known, lambda known: {"$unset": {self._make.pick(edits.OPTIONAL[known.collection]): ""}}
        )

    def _push(self) -> list[Step]:
        known = self._take(["leads"])
        return self._update(
            known, lambda known: edits.push(self._make, known.has_array, self._users.get(known.tenant, []))
        )

    def _pop(self) -> list[Step]:
        known = self._take(["leads"], lambda known: known.has_array)
        return self._update(known, lambda known: edits.pop(self._make))

    def _move(self) -> list[Step]:
        known, tenant = self._take(list(edits.LEFT_BEHIND)), self._tenant()
        if known is None or tenant is None:
            return []
        return self._update(known, lambda known: edits.move(known.collection, tenant))

    def _replace(self) -> list[Step]:
        known = self._take(["users", "forms", "pages", "leads"])
        if known is None:
            return []
        document = self._fresh(known.collection, known.tenant, known.loose) | {"_id": known.id}
        stamp = document[stamp_of(known.collection)] = self._clock.stamp()
        return [Step(Do.REPLACE, known, known.stamp, stamp, document)]

    def _insert(self) -> list[Step]:
        tenant = self._tenant()
        name = self._rng.choices(("forms", "pages", "leads"), (1, 10, 10))[0]
        return [self._insertion(name, tenant)] if tenant else []

    def _reinsert(self) -> list[Step]:
        known = self._deleted.take(lambda known: self._allows(known.tenant))
        if known is None:
            return []
        steps = [self._insertion(known.collection, known.tenant, known)]
        return [*steps, self._password_of(known, known.tenant)] if known.password else steps

    def _delete(self) -> list[Step]:
        name = self._rng.choices(("forms", "pages", "leads"), (1, 10, 10))[0]
        known = self._take([name], lambda known: known.loose or name != "forms")
        return [self._deletion(known)] if known else []

    def _deletion(self, known: Known) -> Step:
        return Step(Do.DELETE, known, known.stamp, self._clock.stamp())

    def _submit_form(self) -> list[Step]:
        form = self._take(["forms"], lambda known: not known.loose)
        if form is None:
            return []
        lead = self._insertion("leads", form.tenant)
        lead.body["formId"] = form.id
        return [lead, *self._update(form, lambda known: {"$inc": {"submitCount": 1}})]

    def _add_user(self) -> list[Step]:
        tenant = self._tenant()
        if tenant is None:
            return []
        user = self._insertion("users", tenant)
        return [user, self._password_of(user.known, tenant)]

    def _delete_user(self) -> list[Step]:
        user = self._take(["users"], lambda known: known.password is not None)
        if user is None or user.password is None:
            return []
        return [self._deletion(user.password), self._deletion(user)]

    def _revise(self) -> list[Step]:
        """Change two documents in one transaction, the first of them before and after the second."""
        first = self._take(["pages", "leads"])
        if first is None:
            return []
        second = self._take(["pages", "leads"], lambda known: known.tenant == first.tenant)
        begun, other, ended = (
            self._update(one, lambda known: edits.assign(self._make, known.collection))
            for one in (first, second, first)
        )
        ended[0].expects = begun[0].stamp
        return [*begun, *other, *ended]

    def _redo(self) -> list[Step]:
        """Delete a document and insert another under its id, in one transaction."""
        known = self._take(["pages", "leads"])
        return (
            [self._deletion(known), self._insertion(known.collection, known.tenant, known)] if known else []
        )


def _owned(steps: Sequence[Step]) -> list[Step]:
    """Return the last step of each document that lives in a pool: all but the passwords of loose users."""
    last = {id(step.known): step for step in steps}
    return [step for step in last.values() if step.collection != "passwords" or not step.known.loose]
