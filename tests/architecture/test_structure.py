"""The shape that the design asks for, read from the sources."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[2]
PACKAGES = ("worker", "topics", "schema", "examples", "clients")
LONGEST_MODULE = 400  # lines
NOT_OURS = {".venv", ".git", "node_modules", "build", "dist", "__pycache__"}


@cache
def files() -> tuple[Path, ...]:
    """Every file of the project, relative to its root."""
    return tuple(
        path.relative_to(ROOT)
        for path in sorted(ROOT.rglob("*"))
        if path.is_file() and not any(_is_not_ours(part) for part in path.relative_to(ROOT).parts[:-1])
    )


def _is_not_ours(folder: str) -> bool:
    hidden = folder.startswith(".") and folder not in (".ci", ".github")
    return hidden or folder in NOT_OURS or folder.endswith(".egg-info")


def modules(*folders: str) -> list[Path]:
    return [path for path in files() if path.suffix == ".py" and (not folders or path.parts[0] in folders)]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text("utf-8"))


def imported(path: Path) -> set[str]:
    """The top-level packages that a module imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def public(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """The public functions and classes of a module, and the public methods of those classes."""
    ours: list[ast.Module | ast.ClassDef] = [tree(path)]
    for owner in ours:
        for node in owner.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                if node.name.startswith("_"):
                    continue
                yield node
                if isinstance(node, ast.ClassDef):
                    ours.append(node)


@pytest.mark.parametrize(
    "folder",
    [
        "worker",
        "topics",
        "schema",
        "tests",
        pytest.param(
            "deploy",
            marks=pytest.mark.xfail(not (ROOT / "deploy").is_dir(), reason="there is no image yet"),
        ),
    ],
)
def test_a_required_folder_is_there(folder: str) -> None:
    assert (ROOT / folder).is_dir()


def test_imports_keep_to_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0


def test_the_contracts_need_nothing_but_bson() -> None:
    free = set(sys.stdlib_module_names)
    for package, allowed in (("topics", {"topics", "bson"}), ("schema", {"schema"})):
        for path in modules(package):
            assert imported(path) <= free | allowed, path


def test_the_client_shares_nothing_with_the_program() -> None:
    free = {*sys.stdlib_module_names, "crossfade_client", "asyncpg", "pymongo"}
    for path in modules("clients"):
        assert imported(path) <= free, path
    for path in modules("worker", "topics", "schema"):
        assert "crossfade_client" not in imported(path), path


# A driver's package, and the one folder that may import it. Embedded servers are asked by their own drivers
# whether they are ready.
READINESS = {"worker/embedded/readiness.py"}
DRIVERS = {
    "worker/mongo": {"motor", "pymongo", "gridfs"},
    "worker/broker": {"aiokafka", "faust", "mode"},
    "worker/postgres": {"asyncpg"},
}
# Known exceptions, none of which opens a connection. They name a driver's errors or the type of a
# connection; each goes when its folder's package offers what it needs.
EXCEPTIONS = {
    "worker/apply/worker.py": {"asyncpg"},
    "worker/apply/writer.py": {"asyncpg"},
    "worker/publish/copy.py": {"pymongo"},
    "worker/publish/process.py": {"pymongo"},
    "worker/publish/stream.py": {"pymongo"},
    "worker/reconcile/process.py": {"pymongo"},
}


def _strange_drivers(path: Path) -> set[str]:
    return {
        driver
        for folder, drivers in DRIVERS.items()
        for driver in imported(path) & drivers
        if Path(folder) not in path.parents and str(path) not in READINESS
    }


def test_each_driver_is_imported_in_its_folder_alone() -> None:
    strange = {str(path): found for path in modules("worker") if (found := _strange_drivers(path))}
    unknown = {path: found - EXCEPTIONS.get(path, set()) for path, found in strange.items()}
    assert {path: found for path, found in unknown.items() if found} == {}


def test_no_exception_is_kept_that_nobody_needs() -> None:
    assert {path: _strange_drivers(Path(path)) for path in EXCEPTIONS} == EXCEPTIONS


@pytest.mark.parametrize("path", modules(), ids=str)
def test_a_module_is_short(path: Path) -> None:
    assert len((ROOT / path).read_text("utf-8").splitlines()) < LONGEST_MODULE


def test_every_package_and_module_says_what_it_is() -> None:
    packages = [path for path in modules() if path.name == "__init__.py"]
    silent = [path for path in {*packages, *modules(*PACKAGES)} if not ast.get_docstring(tree(path))]
    assert silent == []


def test_every_public_name_of_the_kafka_contract_is_documented() -> None:
    silent = [
        f"{path}: {node.name}"
        for path in modules("topics")
        for node in public(path)
        if not ast.get_docstring(node)
    ]
    assert silent == []


# Put together here, so that this file does not hold them.
INDEXES = re.compile(
    "|".join(
        re.escape(host) + path
        for host, path in (
            ("pypi." + "org", "/simple"),
            ("files.python" + "hosted.org", ""),
            ("repo1." + "maven.org", ""),
            ("repo.maven." + "apache.org", ""),
            ("registry." + "npmjs.org", ""),
            ("proxy." + "golang.org", ""),
        )
    )
)


def test_no_file_holds_the_address_of_a_package_index() -> None:
    holding = [
        str(path)
        for path in files()
        if INDEXES.search((ROOT / path).read_bytes().decode("utf-8", errors="replace"))
    ]
    assert holding == []
