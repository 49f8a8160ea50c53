"""Faults on purpose: one at a time in tests, many at once in seeded runs (``python -m tests.faults``)."""
