"""Plan: which parameter groups train at each optimizer step."""
