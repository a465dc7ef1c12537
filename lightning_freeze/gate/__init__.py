"""Gate: hold what the plan freezes still, and undo everything at the end."""
