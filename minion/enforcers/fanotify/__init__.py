"""Exec and open rules through fanotify permission events."""

from garrison.minion.enforcers.fanotify.enforcer import FanotifyEnforcer

__all__ = ["FanotifyEnforcer"]
