"""Bundles on disk: verified, fsynced, last good kept."""

from garrison.minion.bundles.generation import Generation, Staged
from garrison.minion.bundles.store import BundleStore

__all__ = ["BundleStore", "Generation", "Staged"]
