"""The master: keeps inventory and keys of nodes, assigns bundles, collects events, runs jobs."""
