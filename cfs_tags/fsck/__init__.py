"""Checking a repository, and repairing what can be repaired without losing anything."""
