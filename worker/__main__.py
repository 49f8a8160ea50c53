"""``python -m worker``: the same as the command ``crossfade``."""

from worker.cli import main

main()
