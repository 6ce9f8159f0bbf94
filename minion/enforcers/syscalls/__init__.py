"""System call rules, watched by tracepoints."""

from garrison.minion.enforcers.syscalls.enforcer import SyscallsEnforcer

__all__ = ["SyscallsEnforcer"]
