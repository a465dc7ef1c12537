"""The command line `lightning-freeze`."""
