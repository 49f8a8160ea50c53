"""The way back: what the application writes in PostgreSQL after its switch reaches MongoDB as well.

``publish`` takes documents from the outbox, rebuilds them from their rows and sends them; ``apply`` writes
them into MongoDB; ``process`` runs both.
"""
