"""The master's durable store of events, nodes, bundles, assignments and jobs."""
