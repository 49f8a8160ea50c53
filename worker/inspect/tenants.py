"""Finds the field that tells a document's tenant."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from worker.errors import ConfigurationError
from worker.inspect.choices import FITTING, percent
from worker.inspect.names import mappable, shown, snake, yaml_text
from worker.inspect.profile import DISTINCT, Profile
from worker.inspect.survey import Survey, Surveyed, known

_NAMES = re.compile(
    r"(tenant|org|organi[sz]ation|account|workspace|company|site|space|team|customer_account)(_?(id|ref|key))?"
)
_SURE = re.compile(r"tenant(_?(id|ref|key))?")
SHARED = "-"
"""Given in place of a path: the collection's documents belong to all tenants."""
_SCALARS = ("string", "int", "long", "uuid", "objectId")


@dataclass(slots=True)
class Candidate:
    """A path that may tell the tenant; ``presence``: in which share of each collection's documents."""

    path: str
    presence: dict[str, float] = field(default_factory=dict)
    different: int = 0
    refers_to: str | None = None

    @property
    def rank(self) -> tuple[bool, int, bool]:
        """The greater, the likelier."""
        sure = _SURE.fullmatch(snake(self.path.rpartition(".")[2])) is not None
        return sure, sum(share >= FITTING for share in self.presence.values()), self.refers_to is not None


@dataclass(slots=True)
class TenantChoice:
    """Where a collection's tenant comes from; ``path`` is None where its documents have none.

    ``firm``: each tenant that was looked up is a document of the tenants' own collection.
    """

    path: str | None
    decide: list[str] = field(default_factory=list)
    firm: bool = False


def candidates(survey: Survey) -> list[Candidate]:
    """Return the paths that may tell the tenant, the likeliest first."""
    found: dict[str, Candidate] = {}
    for one in survey.collections:
        for path, profile in _scalars(one.profile):
            candidate = found.setdefault(path, Candidate(path))
            candidate.presence[one.name] = round(profile.values / max(one.documents, 1), 4)
            candidate.different = max(candidate.different, profile.different)
            if profile.reference:
                candidate.refers_to = profile.reference.collection
    likely = [one for one in found.values() if one.different < DISTINCT]
    return sorted(likely, key=lambda one: one.rank, reverse=True)


def _scalars(profile: Profile, within: str = "", depth: int = 0) -> Iterator[tuple[str, Profile]]:
    if depth > 3 or (within and profile.like_a_map):
        return
    for name, inner in profile.fields.items():
        path = f"{within}{name}"
        if "." in name or not name:
            continue
        if _NAMES.fullmatch(snake(name)) and inner.values and inner.of(*_SCALARS) >= FITTING * inner.values:
            yield path, inner
        yield from _scalars(inner, f"{path}.", depth + 1)


def choose_tenants(
    survey: Survey, everywhere: str | None, given: Mapping[str, str]
) -> dict[str, TenantChoice]:
    """Return each collection's tenant: as it was given, or else by the likeliest candidate."""
    for name in given:
        known("collection", name, [one.name for one in survey.collections])
    likeliest = _likeliest_of(survey)
    chosen = {
        one.name: _of_path(one, given[one.name], True)
        if one.name in given
        else _of_path(one, everywhere, False)
        if everywhere
        else _likeliest(one, likeliest)
        for one in survey.collections
    }
    if everywhere and not any(chosen[one.name].path for one in survey.collections if one.documents):
        raise ConfigurationError(
            f"no collection has field {everywhere}", remedy="mend --tenant-path, or leave it out"
        )
    _of_tenants_themselves(survey, chosen, given)
    return chosen


def _of_path(one: Surveyed, path: str, must: bool) -> TenantChoice:
    if path == SHARED:
        return TenantChoice(None)
    if not one.documents:
        return TenantChoice(path, [f"no document was seen: is {shown(path)} its tenant?"])
    profile = one.at(path)
    if profile is None or not profile.values:
        if must:
            raise ConfigurationError(f"collection {one.name} has no field {path}", remedy="mend --tenant")
        return TenantChoice(None, _without(one, path))
    return TenantChoice(path, _missing(one, profile))


def _likeliest_of(survey: Survey) -> Candidate | None:
    """Return the first candidate, if its name says tenant or half of the collections have it everywhere."""
    for candidate in candidates(survey)[:1]:
        sure, everywhere, _ = candidate.rank
        if sure or everywhere >= sum(one.documents > 0 for one in survey.collections) / 2:
            return candidate
    return None


def _likeliest(one: Surveyed, candidate: Candidate | None) -> TenantChoice:
    profile = one.at(candidate.path) if candidate else None
    if candidate is None or profile is None or profile.values < one.documents / 2:
        return TenantChoice(None, _without(one, candidate.path if candidate else None))
    told = f"{shown(candidate.path)} looks like the tenant: say so with --tenant-path, or which field is"
    return TenantChoice(candidate.path, [told, *_missing(one, profile)])


def _without(one: Surveyed, path: str | None) -> list[str]:
    told = [f"few documents or none have {shown(path)}" if path else "no field is surely the tenant"]
    for name, profile in one.profile.fields.items():
        reference = profile.reference
        if reference and mappable(name) and profile.values >= FITTING * one.documents:
            parent = f"{{collection: {yaml_text(reference.collection)}, path: {yaml_text(name)}}}"
            told.append(f"or its parent's tenant, {{parent: {parent}, column: tenant_id}}, if that has one")
    return [*told, "with no tenant the rows can be read and written by all tenants"]


def _missing(one: Surveyed, profile: Profile) -> list[str]:
    without = one.documents - profile.values
    if not without:
        return []
    share = percent(without, one.documents)
    return [f"{without} documents ({share}) of the sample have no tenant: they will be dead letters"]


def _of_tenants_themselves(survey: Survey, chosen: dict[str, TenantChoice], given: Mapping[str, str]) -> None:
    """Give the collection whose ids are the tenants its own: each of its documents is a tenant."""
    votes: Counter[str] = Counter()
    for one in survey.collections:
        path = chosen[one.name].path
        profile = one.at(path) if path else None
        if profile and profile.reference and profile.reference.found >= FITTING * profile.reference.looked:
            votes[profile.reference.collection] += 1
    for name, _ in votes.most_common(1):
        if name in given or chosen[name].path is not None:
            continue
        chosen[name] = TenantChoice("_id")
        for one in survey.collections:
            path = chosen[one.name].path
            profile = one.at(path) if path and path != "_id" else None
            reference = profile.reference if profile else None
            chosen[one.name].firm = (
                reference is not None and reference.collection == name and reference.found == reference.looked
            )
