"""Whether the long forms of tests are wanted: ``LONG_FAULTS=1 make test ARGS=tests/faults``."""

from __future__ import annotations

import os

LONG = bool(os.environ.get("LONG_FAULTS"))
