"""The tree of Crossfade's own errors.

    CrossfadeError                 exit 1
    ├── UsageError                 exit 2: configuration, mapping or environment is wrong; a person must act
    │   ├── ConfigurationError       a setting is missing or wrong
    │   ├── MappingError             the mapping file is wrong, alone or against the databases
    │   ├── ServiceUnavailable       a service cannot be reached or refuses us at start
    │   └── SchemaError              the database's schema is not what this program needs
    ├── Transient                  the same work may succeed when tried again
    └── Fatal                      this process must end; a restart is the recovery

Every message says what is wrong and what to do, and holds no secret and no value of a row.
"""

from __future__ import annotations


class CrossfadeError(Exception):
    """Crossfade cannot go on."""

    exit_code = 1

    def __init__(self, message: str = "", *, remedy: str = "") -> None:
        self.message = message or (self.__doc__ or "").strip()
        self.remedy = remedy
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message}: {self.remedy}" if self.remedy else self.message


class UsageError(CrossfadeError):
    """Something outside the program must be put right first."""

    exit_code = 2


class ConfigurationError(UsageError):
    """A setting is missing or wrong."""


class MappingError(UsageError):
    """The mapping is wrong."""


class ServiceUnavailable(UsageError):
    """A service cannot be reached, or refuses us, at start."""


class SchemaError(UsageError):
    """The database's schema is not what this program needs."""


class Transient(CrossfadeError):
    """The same work may succeed when it is tried again."""


class Fatal(CrossfadeError):
    """This process must end; starting again is the recovery."""
