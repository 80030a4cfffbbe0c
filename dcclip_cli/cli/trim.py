"""`dcclip trim`: a multilingual model without the vocabulary of other languages."""

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from dcclip_cli.cli import console, flags
from dcclip_cli.errors import Message
from dcclip_cli.text import split

_MOST_TEXTS, _MOST_BYTES = 1_000_000, 200_000_000
_NAMED = 8  # texts
_MODEL = Argument(metavar="MODEL", help="Model directory (any format), run, hf:ORG/NAME or hf-hub:ORG/NAME.")
_LANGUAGES = Option("--languages", metavar="zh,en", help="Languages to keep.")
_OUT = Option("--out", metavar="DIR", help="Directory for the trimmed model. Default: NAME-zh-en.")
_TEXTS = Option(
    "--texts",
    metavar="FILE",
    help="File with texts, one per line: keep only the tokens of these texts and of dcclip's class names, and all "
    "single characters. Default: all tokens in the languages' scripts.",
)


def trim(
    model: Annotated[str, _MODEL],
    languages: Annotated[str, _LANGUAGES] = "zh,en",
    out: Annotated[Path | None, _OUT] = None,
    texts: Annotated[Path | None, _TEXTS] = None,
    trust_remote_code: flags.TrustRemoteCode = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
) -> None:
    """Trim a multilingual model's vocabulary to the languages that you need.

    Writes a model directory in the format of the original, and prints sizes and path. All other weights are unchanged.
    The command compares both models on texts in both languages, and fails if an embedding changes though all tokens of
    its text are kept. It counts and lists the texts that lose tokens.
    """
    from dcclip_cli import api

    lines = flags.lines_of(texts, Message("text"), _MOST_TEXTS, _MOST_BYTES) if texts else None
    talk = console.talk(quiet, verbose)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "progress": talk}
    result = api.trim(model, languages=split(languages), out=out, texts=lines, **options)
    rows = [
        (Message("tokens"), f"{result.pieces_before:,}", f"{result.pieces:,}"),
        (Message("parameters"), f"{result.parameters_before / 1e6:.2f} M", f"{result.parameters / 1e6:.2f} M"),
        (Message("share"), "100 %", f"{result.parameters / result.parameters_before:.0%}".replace("%", " %")),
    ]
    console.show_table(str(result.folder), ("", Message("before"), Message("after")), rows)
    same = Message("largest difference of {} embeddings: {:.1g}", result.compared, result.difference)
    share = f"{len(result.split) / max(1, result.texts):.1%}".replace("%", " %")
    talk.say(Message("{:,} texts compared, {} are tokenized differently than before; {}", result.texts, share, same))
    for text in result.split[:_NAMED]:
        talk.say(Message("warning: this text loses a token: {}", text))
    if len(result.split) > _NAMED:
        talk.say(Message("warning: and {:,} more texts", len(result.split) - _NAMED))
    if result.unseen_split is not None:
        estimate = f"{result.unseen_split:.1%}".replace("%", " %")
        talk.say(
            Message("texts like those in {}: about {} would lose tokens (estimated from half of them)", texts, estimate)
        )
    console.show(str(result.folder))
