"""Commands for nodes and their answers."""
