"""Part of Crossfade."""
