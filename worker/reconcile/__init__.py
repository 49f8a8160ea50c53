"""Proof that both databases hold the same, while writes go on.

``compare`` tells two documents apart, ``judge`` a lag from a mismatch; ``sides`` reads both databases,
``walk`` goes through everything, ``recheck`` looks again at what was changed or did not fit, and ``process``
does both by turns.
"""
