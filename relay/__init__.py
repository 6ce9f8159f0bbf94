"""Stands in for the master at a site: takes its nodes' events into a spool, carries them up, and assignments down."""
