"""Crossfade's program: publish, apply, and the commands around them."""
