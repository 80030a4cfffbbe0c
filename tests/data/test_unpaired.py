"""Texts without images, phrases made of texts, and images without captions."""

import re
from pathlib import Path

import pytest

from dcclip_cli.cli.system_errors import explained
from dcclip_cli.core.errors import DcclipError
from dcclip_cli.data.class_folders import images_by_class
from dcclip_cli.data.dataset import write_parquet
from dcclip_cli.data.options import DataOptions
from dcclip_cli.data.pair import LANGUAGES, Language, Pair, PairDataset
from dcclip_cli.data.unpaired import TextDataset, open_images, open_texts, recipe_images, with_phrases
from dcclip_cli.train.loading import load_batches
from tests.tars import tar_bytes


def write(tmp_path: Path, name: str, text: str) -> Path:
    (tmp_path / name).write_text(text, "utf-8")
    return tmp_path / name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", "en\tzh\na cat, “asleep”\t一只猫，睡着了\na dog\t狗\n"),
        ("a.tsv", "a cat, “asleep”\t一只猫，睡着了\r\na dog\t狗\r\n"),
        ("a.csv", 'zh,en\n一只猫，睡着了,"a cat, “asleep”"\n狗,a dog\n'),
        ("a.jsonl", '{"zh": "一只猫，睡着了", "en": ["a cat, “asleep”"]}\n\n{"zh": ["狗"], "en": "a dog", "id": 3}\n'),
    ],
)
def test_parallel_text_is_read_line_by_line(tmp_path: Path, name: str, text: str) -> None:
    texts = open_texts(write(tmp_path, name, text))
    assert texts.captions("zh") == [("一只猫，睡着了",), ("狗",)]
    assert texts.captions("en") == [("a cat, “asleep”",), ("a dog",)]
    assert (len(texts), texts.num_images) == (2, 0)


@pytest.mark.parametrize(
    ("name", "text", "zh", "en"),
    [
        # A line is Chinese if it has a Chinese character.
        ("a.txt", "\ufeff一只 cat\n\n  a dog \n", [("一只 cat",), ()], [(), ("a dog",)]),
        # A quotation mark in a .tsv is a character, and one of the languages may be empty.
        ("a.tsv", 'a 5" pipe\t五英寸管\n"so"\t“这样”\n', [("五英寸管",), ("“这样”",)], [('a 5" pipe',), ('"so"',)]),
        ("a.tsv", "zh\ten\n猫\t\n\ta dog\n", [("猫",), ()], [(), ("a dog",)]),
    ],
)
def test_texts_are_read_by_language(tmp_path: Path, name: str, text: str, zh: object, en: object) -> None:
    texts = open_texts(write(tmp_path, name, text))
    assert (texts.captions("zh"), texts.captions("en")) == (zh, en)


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("a.tsv", "a cat\ta dog\n", r"a\.tsv:1: unclear which column is Chinese"),
        ("a.tsv", "zh\ten\n猫\tcat\n狗\n", r"a\.tsv:3: 1 columns instead of 2"),
        ("a.jsonl", '{"zh": "猫"}\n{"zh": \n', r"a\.jsonl:2 is not JSON"),
        ("a.jsonl", "[]\n", r"a\.jsonl:1 is not a JSON object"),
        ("a.CSV", "zh,en,zh\n猫,cat,狗\n", r"a\.CSV has more than one column zh"),
        ("a.jsonl", '{"en": 0}\n', r"a\.jsonl:1: en is neither a string nor a list of strings"),
        ("a.txt", " \n\n", r"a\.txt contains no text"),
        ("a.docx", "猫", r"a\.docx is not a supported text file"),
        ("a.txt", "一只小猫在睡觉".encode("gb18030"), r"a\.txt is encoded in GB18030 instead of UTF-8"),
        ("", None, "is not a supported text file"),
        ("b.txt", None, "does not exist"),
    ],
)
def test_an_unreadable_file_is_named_with_its_line(
    tmp_path: Path, name: str, text: str | bytes | None, what: str
) -> None:
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DcclipError, match=what) as raised:
        open_texts(tmp_path / name)
    assert raised.value.hint


def test_each_different_caption_of_pairs_is_a_text(tmp_path: Path) -> None:
    pairs = [Pair("a", b"", ("猫", "动物"), ("cat", "animal")), Pair("b", b"", ("狗", "动物"), ("dog",))]
    write_parquet(tmp_path / "a.parquet", pairs)
    texts = open_texts(tmp_path / "a.parquet")
    assert texts.captions("zh") == [("猫",), ("动物",), ("狗",), (), (), ()]
    assert texts.captions("en") == [(), (), (), ("cat",), ("animal",), ("dog",)]
    assert texts.num_images == 0


ZH = ("猫", "小狗", "热气球", "红色")
EN = ("cat", "puppy", "hot air balloon", "red")


@pytest.fixture
def plain(tmp_path: Path) -> TextDataset:
    """Four names in each language, a list and a sentence in each, every one in a line of its own."""
    extra = ("猫，动物", "一只橘色的小猫在窗台上晒太阳", "cat, animal", "an orange kitten basks on the window sill")
    return open_texts(write(tmp_path, "words.txt", "\n".join([*ZH, *EN, *extra])))


def phrases_of(texts: PairDataset, language: Language) -> list[str]:
    """The phrases in one language, which follow the 12 texts of `plain`."""
    return [lines[0] for lines in texts.captions(language)[12:] if lines]


@pytest.mark.parametrize(("language", "words", "joins"), [("zh", ZH, ("", "，")), ("en", EN, (" ", ", "))])
def test_a_phrase_is_two_or_three_names_joined_or_listed(
    plain: TextDataset, language: Language, words: tuple[str, ...], joins: tuple[str, str]
) -> None:
    phrases = phrases_of(with_phrases(plain, 400), language)
    word = "|".join(words)
    for join in joins:
        for count in (2, 3):
            pattern = re.compile(join.join([f"({word})"] * count))
            assert len({phrase for phrase in phrases if pattern.fullmatch(phrase)}) > 5, (join, count)
    assert all(re.fullmatch(f"({word})(({joins[0]}|{joins[1]})({word})){{1,2}}", phrase) for phrase in phrases)


def test_phrases_follow_the_texts_in_equal_parts_of_the_languages(plain: TextDataset) -> None:
    texts = with_phrases(plain, 400)
    assert (len(texts), texts.num_images, list(texts)[:12]) == (412, 0, list(plain))
    assert 150 < len(phrases_of(texts, "zh")) < 250
    assert all(bool(text.zh) != bool(text.en) for text in texts)


def test_parallel_text_stays_parallel(tmp_path: Path) -> None:
    english = dict(zip(ZH, EN, strict=True))
    parallel = write(tmp_path, "words.tsv", "".join(f"{zh}\t{en}\n" for zh, en in english.items()))
    texts = with_phrases(open_texts(parallel), 200)
    for row in range(4, 204):
        zh = texts[row].zh[0]
        en = texts[row].en[0]
        assert en == (", " if "，" in zh else " ").join(english[part] for part in re.findall("|".join(ZH), zh))


def test_phrases_are_the_same_in_every_version_and_whether_one_or_all_are_asked_for(plain: TextDataset) -> None:
    texts = with_phrases(plain, 70_000)
    zh, en = ([*texts.captions(language)] for language in LANGUAGES)
    assert zh[12:18] == [("热气球热气球小狗",), (), (), (), (), ("小狗热气球",)]
    assert en[12:17] == [(), ("cat, hot air balloon, cat",), ("red puppy",), ("cat puppy red",), ("red puppy",)]
    assert texts.fingerprint != with_phrases(plain, 70_001).fingerprint
    for row in (12, 13, 5_000, 65_547, 65_548, 70_011):
        assert (texts[row].zh, texts[row].en) == (zh[row], en[row])


@pytest.mark.parametrize("kind", ["parquet", "tar", "shards", "folder"])
def test_images_are_read_without_their_captions(tmp_path: Path, pairs: list[Pair], kind: str) -> None:
    path = tmp_path / {"parquet": "a.parquet", "tar": "a.tar"}.get(kind, "")
    with pytest.raises(DcclipError, match="contains no images" if kind in ("shards", "folder") else "does not exist"):
        open_images(path)
    if kind == "parquet":
        write_parquet(path, pairs[:2])
    elif kind == "folder":
        for number, pair in enumerate(pairs[:2]):
            (tmp_path / f"猫{number}").mkdir()
            (tmp_path / f"猫{number}/a.PNG").write_bytes(pair.image)
    else:
        without_records = [(f"{pair.key}.png", pair.image) for pair in pairs[:2]]
        (tmp_path / "a.tar").write_bytes(tar_bytes(without_records))
    images = open_images(path)
    assert [pair.image for pair in images] == [pair.image for pair in pairs[:2]]
    assert images.captions("zh") == [(), ()] and images.num_pairs == 0


def test_held_out_images_are_not_trained_on_unless_pairs_are_held_out(tmp_path: Path, pairs: list[Pair]) -> None:
    for number, name in enumerate(("a", "b", "猫", "d", "e")):
        (tmp_path / f"{number}-{name}.png").write_bytes(pairs[number].image)
    data = DataOptions(images=str(tmp_path), hold_out=2)
    held, rest = (recipe_images(data, kind) for kind in ("validation", "train"))
    assert held is not None and list(held.keys()) == ["0-a.png", "4-e.png"] and held.num_pairs == 0
    assert rest is not None and list(rest.keys()) == ["1-b.png", "2-猫.png", "3-d.png"]
    both = recipe_images(data.model_copy(update={"train": "pairs"}), "train")
    assert both is not None and len(both) == 5
    with pytest.raises(DcclipError, match=r"hold_out is 5, but .* only 5"):
        recipe_images(data.model_copy(update={"hold_out": 5}), "train")


def test_a_folder_of_images_is_in_the_order_of_its_names_and_told_apart_by_names_and_sizes(tmp_path: Path) -> None:
    nas = ("@eaDir/a.JPG/thumbnail.jpg", "b/._猫.jpg", "#recycle/a.jpg")
    for name in ("b/猫.jpg", "a.JPG", "b-1.png", "b/a.webp", "b/notes.txt", *nas):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    assert list(images_by_class(tmp_path)) == ["b"] and [*map(len, images_by_class(tmp_path).values())] == [2]
    images = open_images(tmp_path)
    assert images.keys() == ["a.JPG", "b/a.webp", "b/猫.jpg", "b-1.png"]
    assert images.image(2) == "b/猫.jpg".encode()
    prints = [images.fingerprint, open_images(tmp_path).fingerprint]
    (tmp_path / "a.JPG").write_bytes(b"longer")
    prints.append(open_images(tmp_path).fingerprint)
    (tmp_path / "a.JPG").rename(tmp_path / "b.JPG")
    prints.append(open_images(tmp_path).fingerprint)
    assert prints[0] == prints[1] and len(set(prints)) == 3


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file here has read errors")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_photograph_that_is_gone_or_on_a_failing_disk_is_named_by_the_error(tmp_path: Path, workers: int) -> None:
    gone = tmp_path / "猫.jpg"
    failing = tmp_path / "dog.jpg"
    gone.write_bytes(b"")
    failing.symlink_to("/proc/self/mem")
    photographs = open_images(tmp_path)
    gone.unlink()
    for index, problem in enumerate([f"{failing}: Input/output error", f"{gone} does not exist"]):
        with pytest.raises(OSError) as raised:  # of any number
            list(load_batches(lambda indices: photographs.image(indices[0]), [[index]], workers))
        explanation = explained(raised.value)
        assert explanation and explanation.what == problem
