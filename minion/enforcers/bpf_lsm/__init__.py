"""The kernel enforcer: rules compiled to tables that BPF LSM programs walk. Cost follows the path, not the number of rules."""
