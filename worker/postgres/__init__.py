"""Everything that talks to PostgreSQL: connections, kinds of errors, and each statement, by its table."""
