"""The local HTTP API on a Unix socket that the command line uses."""
