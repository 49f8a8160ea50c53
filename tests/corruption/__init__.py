"""Corruptions of every kind, planted into PostgreSQL behind everybody's back: the reconciler must find them.

``kinds`` plants them, each with what it makes of its document; ``run`` is the program beside them, and
compares what it finds; ``__main__`` is `make corruption`.
"""
