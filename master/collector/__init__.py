"""Accepts connections of nodes, acknowledges their events, sends assignments and jobs."""
