"""`dcclip mcp`: tools for AI assistants, for the photographs of folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument

from dcclip_cli.cli import console, flags
from dcclip_cli.errors import DcclipError, Message

_FOLDERS = Argument(metavar="FOLDER...", help="Folders of photographs, read recursively; the tools read no other file.")


def mcp(
    folders: Annotated[list[Path], _FOLDERS],
    model: flags.Model = None,
    device: flags.Where = "auto",
    threads: flags.Threads = None,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Let an AI assistant search, see and label the photographs in folders.

    A server of the Model Context Protocol on stdin and stdout, which the assistant starts. It changes no file in the
    folders. Photographs that the assistant looks at are sent to its model; a search sends their paths.
    """
    talk = console.talk(quiet, verbose)
    for folder in folders:
        if not folder.is_dir():
            raise DcclipError("{} is not a folder", "choose a folder of images", folder)

    from dcclip_cli.inference.files import open_encoder
    from dcclip_cli.inference.model import Model
    from dcclip_cli.serve.mcp import tool_server

    server = tool_server(Model(open_encoder(model, device, threads, talk)), folders)
    talk.say(Message("mcp: waiting for an assistant on stdin; stop with Ctrl-C"))
    server.run()
