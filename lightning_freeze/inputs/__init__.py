"""The input audit: no module is passed what it never uses. A product of its own, which knows only findings."""
