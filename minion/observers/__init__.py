"""What the node saw: commands, resources, errors, the agent itself."""
