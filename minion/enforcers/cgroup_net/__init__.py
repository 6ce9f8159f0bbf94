"""Network rules in the kernel, by programs on a cgroup."""

from garrison.minion.enforcers.cgroup_net.enforcer import CgroupNetEnforcer

__all__ = ["CgroupNetEnforcer"]
