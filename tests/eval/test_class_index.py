"""The keys, names and numbers of classes lead to the right class, in every data set that ships."""

import pytest

from dcclip_cli.errors import DcclipError
from dcclip_cli.eval import prompts, registry
from dcclip_cli.eval.prompts import ClassIndex, Prompts, normalized
from dcclip_cli.eval.registry import SETS, KnownSet

CRANES = Prompts(["n1", "n2", "n3"], {"en": ["crane", "crane", "dog"]}, {"en": {"dog": ["hound"]}}, {"en": ["{}"]})


@pytest.mark.parametrize("known", [known for known in SETS.values() if known.classes], ids=lambda known: known.name)
def test_every_class_is_found_by_its_key_and_named_in_both_languages(known: KnownSet) -> None:
    found = prompts.read(registry.prompts_of(known))
    keys = ClassIndex(found)
    assert [keys.of_folder(folder) for folder in found.folders] == list(range(known.classes))
    assert registry.languages_of(known) == ["en", "zh"]
    for language in registry.languages_of(known):
        assert len(found.names[language]) == known.classes and found.templates[language]
    keys.check_order(found.names["en"], known.name)


def test_a_name_that_two_classes_share_leads_to_neither() -> None:
    keys = ClassIndex(CRANES)
    assert [keys.find(name) for name in ("crane", "Hound", "N1", "cat")] == [None, 2, 0, None]
    assert [keys.of_folder(name) for name in ("2", "3", "n2")] == [2, None, 1]


def test_names_are_compared_without_case_and_punctuation() -> None:
    assert normalized("Golden_Retriever  (dog)") == normalized("golden retriever dog") and normalized("猫。") == "猫"


def test_a_mapping_needs_every_class_once() -> None:
    keys = ClassIndex(CRANES)
    assert keys.mapping(["dog", "n1", "n2"], "x").tolist() == [2, 0, 1]
    with pytest.raises(DcclipError, match="x: cat is not a known class"):
        keys.mapping(["dog", "n1", "cat"], "x")
    with pytest.raises(DcclipError, match="x: the class n2 is missing"):
        keys.mapping(["dog", "n1", "n1"], "x")


def test_two_that_changed_places_are_a_wrong_order() -> None:
    with pytest.raises(DcclipError, match="x: class 0 is 'n2', 'n1' is expected"):
        ClassIndex(CRANES).check_order(["n2", "n1", "dog"], "x")
