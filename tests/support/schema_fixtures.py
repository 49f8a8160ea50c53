"""Databases with Crossfade's and the Spaces schema, each a copy of one migrated template.

A pytest plugin: tests name it in `pytest_plugins` and import nothing of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from schema import migrate
from tests.support.schema_database import Database, database
from worker.embedded import Services


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def migrated_template(services: Services) -> AsyncIterator[str]:
    async with database(services) as template:
        async with template.connect() as connection:
            await migrate.apply(connection, "control")
            await migrate.apply(connection, "spaces")
        yield template.name


@pytest_asyncio.fixture
async def empty_database(services: Services) -> AsyncIterator[Database]:
    async with database(services) as made:
        yield made


@pytest_asyncio.fixture
async def spaces_database(services: Services, migrated_template: str) -> AsyncIterator[Database]:
    async with database(services, migrated_template) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shared_spaces_database(services: Services, migrated_template: str) -> AsyncIterator[Database]:
    """For tests that undo what they do."""
    async with database(services, migrated_template) as made:
        yield made
