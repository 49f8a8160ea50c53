"""The benchmark: copy, backlog, live drain and steady lag, on embedded services with the real processes."""
