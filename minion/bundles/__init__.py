"""Bundles on disk: verified, fsynced, last good kept."""
