"""The PostgreSQL contract: SQL files of both targets, and the code that applies them."""
