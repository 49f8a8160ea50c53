"""The apply worker: Kafka's events into PostgreSQL's rows."""
