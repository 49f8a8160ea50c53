"""Moving tenants' writes from MongoDB to PostgreSQL, and back (docs/protocol.md, docs/cutover.md)."""
