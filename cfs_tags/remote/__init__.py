"""Registries of others, as a client sees them: names, credentials, requests."""
