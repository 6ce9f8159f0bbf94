"""The node's durable, bounded, acknowledged log of events."""
