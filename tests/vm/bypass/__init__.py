"""Tests of the known ways around enforcement, and the table of what becomes of each."""
