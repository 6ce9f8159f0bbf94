"""The minion: enforces, observes, spools and keeps the link."""
