"""Firewall rules by nftables, in a table of garrison's own."""

from garrison.minion.enforcers.nftables.enforcer import NftablesEnforcer

__all__ = ["NftablesEnforcer"]
