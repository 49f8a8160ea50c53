"""The control process: the HTTP API with the applications' flag, and what runs beside it."""
