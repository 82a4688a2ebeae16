"""Fixtures: the recorded host, and the program on its repository."""

from cli.conftest import call, facts, repo, run, sysroot, web  # noqa: F401
