"""`python -m dcclip_cli`, which is what `accelerate launch -m dcclip_cli ...` runs in every process."""

from dcclip_cli.cli.app import app

app(prog_name="dcclip")
