"""Tenants that move there and back all the time while an application writes: nothing is lost, and never two
databases accept one tenant's writes.

``run`` is the storm; ``__main__`` is `make storm`.
"""
