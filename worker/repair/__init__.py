"""Documents that PostgreSQL is to have anew: read from MongoDB, sent through Kafka, never written as rows."""
