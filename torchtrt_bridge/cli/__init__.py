"""The command `torchtrt-bridge`."""
