"""What master, minion and command line share: policy, trust, events, frames, limits, errors. Imports neither side."""
