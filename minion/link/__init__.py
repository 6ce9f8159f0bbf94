"""The DEALER end of the link."""
