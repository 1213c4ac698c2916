"""Command line `torchtrt-bridge`."""
