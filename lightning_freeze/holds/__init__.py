"""Holds: keep what is frozen exactly as it is, and undo everything at the end."""
