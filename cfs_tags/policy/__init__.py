"""Retention: which tags stay, by rules that an administrator writes."""
