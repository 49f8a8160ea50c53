"""Everything that talks to Kafka: topics, the idempotent producer, Faust with its batch consumer."""
