"""Commands: Typer options -> one call -> what is shown."""
