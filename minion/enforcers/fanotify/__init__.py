"""Exec and open rules through fanotify permission events."""
