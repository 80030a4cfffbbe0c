from typing import ClassVar

from pydantic import Field

from dcclip_cli.options import Neutral, Options, Removed, decisive, decisive_before


class Loader(Options):
    workers: Neutral[int] = Field(1, ge=0)
    size: int = 8


class Stage(Options):
    renamed: ClassVar[dict[str, str]] = {"loader": "loaders"}
    removed: ClassVar[dict[str, Removed]] = {"cluster": Removed("leave it out")}
    loaders: tuple[Loader, ...] = ()
    source: str = Field("data", alias="from")
    log_every_steps: Neutral[int] = 20


def test_decisive_options_are_all_but_neutral_ones_at_any_depth() -> None:
    stage = Stage.model_validate({"loaders": [{"workers": 4}], "log_every_steps": 1})
    assert decisive(stage) == {"loaders": [{"size": 8}], "from": "data"}
    assert decisive({1: (stage.loaders[0], None)}) == {"1": [{"size": 8}, None]}


def test_options_of_an_older_version_are_compared_under_their_new_names() -> None:
    old = {"loader": [{"workers": 4, "size": 8}], "cluster": None, "log_every_steps": 5}
    assert decisive_before(Stage, old) == decisive(Stage.model_validate({"loaders": [{}]}))
    assert decisive_before(Stage | None, None) is None
    invalid = {"cluster": "ray"}
    assert decisive_before(Stage, invalid) == invalid
