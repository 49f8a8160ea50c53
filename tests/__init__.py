"""Tests: unit, contract, architecture, integration, faults and end to end."""
