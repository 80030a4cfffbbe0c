from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError, field_validator

from dcclip_cli.options import Options
from dcclip_cli.recipe.load import sentences
from dcclip_cli.recipe.yaml import Document, Location, walk


class Maps(Options):
    kind: Literal["maps"] = "maps"
    weight: float = Field(1.0, gt=0)


class Similarity(Options):
    kind: Literal["similarity"] = "similarity"
    temperature: float = 0.1


class Stage(Options):
    losses: tuple[Annotated[Maps | Similarity, Field(discriminator="kind")], ...]
    batch_size: int | Literal["auto"] = "auto"
    source: str = Field("data", alias="from")
    by_language: dict[str, Maps] = {}

    @field_validator("source")
    @classmethod
    def _no_cats(cls, value: str) -> str:
        if value == "猫":
            raise ValueError("no cats here")
        return value


class Toy(Options):
    distill: Stage | None = None
    languages: tuple[Literal["en", "zh"], ...] = ("en", "zh")


def said(values: dict[str, object]) -> list[str]:
    places: dict[Location, str] = {(): "r.yaml:1"}
    for at, _ in walk(values):
        places |= {at[: depth + 1]: f"r.yaml:{'.'.join(map(str, at[: depth + 1]))}" for depth in range(len(at))}
    with pytest.raises(ValidationError) as caught:
        Toy.model_validate(values)
    return [line.removeprefix("r.yaml:") for line in sentences(caught.value, Toy, Document(dict(values), places))]


def test_an_unknown_key_names_the_nearest_right_one_at_any_depth() -> None:
    assert said({"distil": 1}) == ["distil: distil: unknown key, did you mean 'distill'?"]
    assert said({"distill": {"losses": [], "batchsize": 1, "form": "x"}}) == [
        "distill.batchsize: distill.batchsize: unknown key, did you mean 'batch_size'?",
        "distill.form: distill.form: unknown key, did you mean 'from'?",
    ]
    assert said({"distill": {"losses": [{"kind": "similarity", "wieght": 1, "temprature": 1}]}}) == [
        "distill.losses.0.wieght: distill.losses.0.wieght: unknown key",
        "distill.losses.0.temprature: distill.losses.0.temprature: unknown key, did you mean 'temperature'?",
    ]
    assert said({"distill": {"losses": [], "by_language": {"猫": {"wieght": 1}}}}) == [
        "distill.by_language.猫.wieght: distill.by_language.猫.wieght: unknown key, did you mean 'weight'?"
    ]


def test_a_missing_key_is_placed_at_its_section() -> None:
    assert said({"distill": {"from": "x"}}) == ["distill: distill.losses: missing"]
    assert said({"distill": {"losses": [{"weight": 1}]}}) == [
        "distill.losses.0: distill.losses.0: needs kind: maps, similarity"
    ]


def test_a_wrong_value_is_shown_with_what_is_right() -> None:
    assert said({"distill": {"losses": [{"kind": "maps", "weight": -1}]}, "languages": ["en", "猫"]}) == [
        "distill.losses.0.weight: distill.losses.0.weight: input should be greater than 0 (got -1)",
        "languages.1: languages.1: input should be 'en' or 'zh' (got '猫')",
    ]
    assert said({"distill": {"losses": [], "from": "猫"}}) == ["distill.from: distill.from: no cats here"]


def test_the_ways_in_which_a_value_fits_no_alternative_are_one_sentence() -> None:
    assert said({"distill": {"losses": [], "batch_size": "many"}}) == [
        "distill.batch_size: distill.batch_size: expected a whole number or input should be 'auto' (got 'many')"
    ]
