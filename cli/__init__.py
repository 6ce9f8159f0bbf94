"""The garrison command. Prints; nothing else prints."""
