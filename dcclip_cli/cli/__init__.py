"""Commands: Typer options -> one call -> what is shown. One file per command."""
