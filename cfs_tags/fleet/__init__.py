"""Hosts and the registry that they pull from: what each runs is published there, and read again."""
