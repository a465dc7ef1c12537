"""Audit: prove that what was planned frozen did not move, and that what was planned to train did."""
