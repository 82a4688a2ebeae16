"""A typer program of two empty commands: the least that any command of a typer program can take."""

import typer

app = typer.Typer()


@app.command()
def first() -> None:
    """Do nothing."""


@app.command()
def second() -> None:
    """Do nothing."""


def main() -> None:
    """Run it."""
    app()
