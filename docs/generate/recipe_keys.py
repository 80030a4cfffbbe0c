"""The page of all recipe keys, from the JSON Schema of recipes."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from dcclip_cli.core.errors import Language
from dcclip_cli.core.options import NEUTRAL
from dcclip_cli.curation.options import CollectOptions
from dcclip_cli.recipe.schema import Recipe
from dcclip_cli.train.options import TrainOptions
from docs.generate.markdown import MADE, anchor, code, escaped, table, text

ENGLISH = """\
# Recipes

A recipe is one YAML file that describes a model from data to device: settings that several stages share, then a section
for each stage. Each command reads its own section and the shared ones; `dcclip run` runs every stage that has a
section. Everything is written to `runs/NAME/`, with the recipe: `recipe.yaml` as given, `resolved.yaml` with overrides,
defaults and library versions. In Python, keyword arguments are keys of the stage's section:
`dcclip.distill("recipe.yaml", steps=300)`.

| recipe in the repository | makes |
|---|---|
| [quickstart.yaml](../../recipes/quickstart.yaml) | a small CLIP of emoji, from data to export in minutes |
| [emoji.yaml](../../recipes/emoji.yaml) | the same student trained six times as long ([results](../results/paper.md)) |
| [emoji-contrast.yaml](../../recipes/emoji-contrast.yaml) | the same student without a teacher, for comparison |
| [emoji-tenth.yaml](../../recipes/emoji-tenth.yaml) | a student at a tenth of the demo teacher's size |
| [paper.yaml](../../recipes/paper.yaml) | DC-CLIP's tables and ablations in small, as LaTeX |
| [demo-teacher.yaml](../../recipes/demo-teacher.yaml) | the teacher of the quick start |
| [starter.yaml](../../recipes/starter.yaml) | the model included in dcclip: see [Starter](../starter.md) |
| [text-tower.yaml](../../recipes/text-tower.yaml) | a text tower for [another CLIP's images](../how-to/text-tower.md) |
| [distill-photos.yaml](../../recipes/distill-photos.yaml) | a smaller model distilled from it on your own photographs |
| [distill-photos-larger.yaml](../../recipes/distill-photos-larger.yaml) | the same, more accurate, 4.2 MB |
| [sentences.yaml](../../recipes/sentences.yaml) | a model of sentences, from captioned photographs |
| [sentences-small.yaml](../../recipes/sentences-small.yaml) | a student of it |
| [collect-sample.yaml](../../recipes/collect-sample.yaml) | shards from a small table with errors in it |
| [dc-clip.yaml](../../recipes/dc-clip.yaml) | the paper's setup with AltCLIP; explains every open choice |
| [collect-laion-zh.yaml](../../recipes/collect-laion-zh.yaml), ... | public data: [Collect](../how-to/collect.md) |

```sh
dcclip run recipes/quickstart.yaml --check
dcclip recipe show recipes/quickstart.yaml
dcclip recipe schema
```

The first checks all that the recipe needs and runs nothing; the second prints every default; the third prints the JSON
Schema, with which an editor completes and checks keys.

## Rules

* `--check` builds student, teachers and losses by their shapes, decodes the first image of each data source, and looks
  for captions in the stage's languages. It prints the steps of each training stage, what the teacher has to encode, the
  time, measured for some seconds, and the disk space. With `data: {train: collect}` that is for all pairs of the
  sources until they are collected. A run does the same checks first.
* A value that starts with `./`, `../` or `/` is a path, relative to the recipe's own folder (in `--set` and in Python,
  to the current directory). Any other model or data name is a name on the hub or in a registry.
* `--set distill.steps=300` overrides a value. Items of a list have numbers: `--set distill.losses.0.weight=2`. A stage
  that the recipe lacks is given whole: `--set 'eval={datasets: [cifar10-cn]}'`.
* An unknown or repeated key is an error with file, line and the nearest valid key; all mistakes are reported at once.
* Only YAML 1.2 scalars are read: `no` is text, `1e-3` a number. Anchors, aliases and tags are rejected. Values are
  strict: `true` or `'12'` is no number, `1e3` is no whole number.
* If the recipe of a finished stage has changed, the stage is refused: `--fresh` makes it again, `--out DIR` keeps both.
  Keys that change no result may differ (NEUTRAL_KEYS).

## All keys

Keys in bold are those that most recipes set. *Required* marks a key without a default; `null`, one that may be omitted.
`optimizer.lr` is the key `lr` in the mapping `optimizer`. The languages are `zh` and `en`.
"""
CHINESE = """\
# 配方的键

配方（recipe）是一个 YAML 文件，从数据到设备描述一个模型：几个阶段共用的设置写在最上面，后面每个阶段一节。
每个命令只读自己那一节和共用的设置；`dcclip run` 依次运行配方里有的阶段。产物和配方都在 `runs/NAME/`：
`recipe.yaml` 是原文，`resolved.yaml` 补全了覆盖值、默认值和各库的版本。
Python 里的关键字参数就是该阶段的键：`dcclip.distill("recipe.yaml", steps=300)`，见[入门](../getting-started.zh.md)。

## 规则

* `--check` 只检查、不运行：模型、数据、损失、磁盘空间和大致用时。
* 以 `./`、`../` 或 `/` 开头的值是路径，相对于配方所在的文件夹（`--set` 和 Python 里相对于当前目录）。
  其他的模型名、数据名来自 Hugging Face 或内置列表。
* `--set distill.steps=300` 覆盖一个值，检查同样严格。列表的项用编号：`--set distill.losses.0.weight=2`。
  配方里没有的阶段要整节写出：`--set 'eval={datasets: [cifar10-cn]}'`。
* 不认识的键、重复的键会报错，写明文件、行号和最接近的键；所有错误一次报完。
* 只认 YAML 1.2 的标量：`no` 是文本，`1e-3` 是数。不接受锚点、别名和标签。
  值的类型和范围都严格检查：`true` 和 `'12'` 不是数，`1e3` 不是整数。
* 已完成的阶段如果配方变了，不会直接沿用：用 `--fresh` 重做，或用 `--out DIR` 两份都留。
  不影响结果的键可以不同（NEUTRAL_KEYS）。

## 全部的键

粗体的键是多数配方会写的。*必填*的键没有默认值，默认值为 `null` 的键可以不写。
`optimizer.lr` 指映射 `optimizer` 里的键 `lr`。语言写 `zh` 和 `en`。
"""
HEAD: dict[Language, str] = {"en": ENGLISH, "zh": CHINESE}
# The words of headings and cells in Chinese. What is not here is the same in both languages.
WORDS = {
    "The top": "顶层",
    "distill and align": "distill 和 align",
    "*required*": "*必填*",
    "or": "或",
    "mapping": "映射",
    "mapping with": "映射，种类写在",
    "see": "见",
    "list": "列表",
    "integers": "个整数",
    "numbers": "个数",
    "path": "路径",
    "text": "文本",
    "integer": "整数",
    "number": "数",
    "object": "映射",
    "multiple of": "倍数",
}
_WORD = re.compile(
    "|".join(
        rf"(?<![\w.]){re.escape(word)}(?![\w.])" for word in sorted(WORDS, key=len, reverse=True)
    )
)
# The keys that most recipes set; both training stages share those without a section.
COMMON = {
    *("name", "teacher", "student.preset", "student.embed_dim"),
    *("data.train", "data.images", "data.texts", "data.validation"),
    *(
        "collect.sources",
        "collect.filters",
        "steps",
        "epochs",
        "batch_size",
        "accumulate",
        "optimizer.lr",
        "precision",
    ),
    *("distill.losses", "align.start", "align.lock"),
    *("eval.datasets", "eval.data_root", "export.format", "export.precision"),
}
COLUMNS: dict[Language, tuple[str, ...]] = {
    "en": ("key", "value", "default", "what it does"),
    "zh": ("键", "取值", "默认值", "作用"),
}
BOUNDS = {
    "minimum": "≥",
    "exclusiveMinimum": ">",
    "maximum": "≤",
    "exclusiveMaximum": "<",
    "multipleOf": "multiple of",
}
TYPES = {"boolean": "`true` or `false`", "string": "text"}
Facts = dict[str, Any]  # a part of a JSON Schema
SCHEMA: Facts = Recipe.model_json_schema()
SHARED: Facts = TrainOptions.model_json_schema()  # the keys of both training stages


def page(language: Language = "en") -> str:
    """The whole page: a table for each section of a recipe and, after it, for each list of kinds
    that is new in it.
    """
    fields = (TrainOptions.model_fields | CollectOptions.model_fields).items()
    neutral = ", ".join(f"`{key}`" for key, field in fields if NEUTRAL in field.metadata)
    top = [
        row(key, facts, SCHEMA, language, top=True) for key, facts in SCHEMA["properties"].items()
    ]
    parts = [
        MADE + HEAD[language].replace("NEUTRAL_KEYS", neutral),
        section("The top", "", common(top), language),
    ]
    for key, facts in SCHEMA["properties"].items():
        if key == "distill":
            parts.append(options("distill and align", "", SHARED, language))
        if len(classes(facts)) > 1:
            parts.append(kinds(key, facts, language))
        elif classes(facts):
            part = SCHEMA["$defs"][classes(facts)[0]]
            parts.append(options(key, f"{key}.", part, language))
            for name, inner in part["properties"].items():
                if place(inner) == f"{key}.{name}":
                    parts.append(kinds(f"{key}.{name}", inner, language))
    return "".join(parts)


def options(title: str, prefix: str, part: Facts, language: Language) -> str:
    """The section of a class of options. A training stage has only what is not in both."""
    shared = SHARED["properties"] if title in ("distill", "align") else {}
    own = {key: facts for key, facts in part["properties"].items() if key not in shared}
    rows = keys(prefix, {**part, "properties": own}, language)
    return section(title, text(part.get("description", ""), language), common(rows), language)


def common(rows: Iterable[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """The rows with the keys that most recipes set in bold type."""
    for key, *cells in rows:
        yield f"**{key}**" if key.strip("`") in COMMON else key, *cells


def kinds(title: str, facts: Facts, language: Language) -> str:
    """The section of a mapping with `kind`: the keys that several kinds share, then each kind with
    its own.
    """
    parts = {name: SCHEMA["$defs"][name] for name in classes(facts)}
    having: dict[tuple[str, ...], list[str]] = {}
    for name, part in parts.items():
        for each in keys("", part, language):
            having.setdefault(each, []).append(name)
    rows = list[tuple[str, ...]]()
    for (*cells, about), names in having.items():
        if len(names) > 1:
            of = ", ".join(
                f"`{kind}`" for name in names for kind in choices(parts[name]["properties"]["kind"])
            )
            rows.append((*cells, about if len(names) == len(parts) else f"{about} ({of})"))
    for name, part in parts.items():
        named = ", ".join(f"**`kind: {kind}`**" for kind in choices(part["properties"]["kind"]))
        rows.append((named, "", "", cell(part["description"], language)))
        rows += [each for each in keys("", part, language) if having[each] == [name]]
    return section(
        title,
        text(facts["description"], language) + ("." if language == "en" else "。"),
        rows,
        language,
    )


def section(title: str, about: str, rows: Iterable[Sequence[str]], language: Language) -> str:
    paragraphs = f"{about.strip()}\n\n" if about else ""
    return f"\n### {worded(title, language)}\n\n{paragraphs}{table(COLUMNS[language], rows)}"


def keys(prefix: str, part: Facts, language: Language) -> Iterator[tuple[str, ...]]:
    """The rows of a class's keys, each followed by those of the class that its value is."""
    for key, facts in part["properties"].items():
        if key != "kind":
            yield row(f"{prefix}{key}", facts, part, language)
            inner = classes(facts)
            if len(inner) == 1:
                yield from keys(f"{prefix}{key}.", SCHEMA["$defs"][inner[0]], language)


def row(
    key: str, facts: Facts, part: Facts, language: Language, top: bool = False
) -> tuple[str, ...]:
    """The row of a key by its full name; at the top, that of a section leads to it."""
    inner = classes(facts)
    about = [cell(facts.get("description", ""), language)]
    if len(inner) == 1 and not top:
        docstring = SCHEMA["$defs"][inner[0]].get("description", "")
        shown_docstring = cell(docstring, language)
        if repeats(facts.get("description", ""), docstring):
            shown_docstring = (
                re.split(r"\. |。", shown_docstring, maxsplit=1)[1:][0] if ". " in docstring else ""
            )
        about += [shown_docstring] if shown_docstring else []
    shown = (". " if language == "en" else "。").join(part.rstrip(".。") for part in about)
    allowed = f"see [{key}](#{key})" if top and inner else values(facts)
    default = (
        "*required*" if key.rpartition(".")[2] in part.get("required", ()) else shown_default(facts)
    )
    return code(key), worded(allowed, language), worded(default, language), shown


def repeats(description: str, docstring: str) -> bool:
    """Whether most words of a docstring's first sentence are in the description already."""
    words, described = (
        set(re.findall(r"\w+", text.lower())) for text in (docstring.split(". ")[0], description)
    )
    return len(words & described) > len(words) / 2


def cell(english: str, language: Language) -> str:
    """A description or docstring on one line; there is no blank between Chinese sentences."""
    return escaped(re.sub(r"(?<=[。；：）])\n+", "", text(english, language)))


def worded(english: str, language: Language) -> str:
    """The few words of a title, of values or of a default in a language."""
    if language == "en":
        return english
    parts = re.split(r"(`[^`]*`|\[[^\]]*\]\([^)]*\))", english)
    parts[::2] = [_WORD.sub(lambda found: WORDS[found[0]], part) for part in parts[::2]]
    chinese = "".join(parts).replace(", ", "，").replace(": ", "：")
    return re.sub(r"倍数 (\d+)", r"\1 的倍数", chinese)


def shown_default(facts: Facts) -> str:
    """The default; empty for a mapping, whose keys have theirs."""
    default = facts.get("default")
    if "$ref" in facts:
        return ""
    if isinstance(default, list) and default and isinstance(default[0], dict):
        return ", ".join(f"`{item['kind']}`" for item in default)
    return f"`{json.dumps(default, ensure_ascii=False)}`".replace('"', "")


def values(facts: Facts) -> str:
    """The allowed values in a few words."""
    if "const" in facts or "enum" in facts:
        return " or ".join(f"`{value}`" for value in choices(facts))
    if "$ref" in facts:
        return "mapping"
    if "discriminator" in facts:
        return f"mapping with `kind`, see [{place(facts)}](#{anchor(place(facts))})"
    if either := facts.get("anyOf", facts.get("oneOf")):
        return " or ".join(values(one) for one in either if one.get("type") != "null")
    if "prefixItems" in facts:
        kind, *bounds = values(facts["prefixItems"][0]).split(",", 1)
        return ",".join([f"{len(facts['prefixItems'])} {kind}s", *bounds])
    if facts["type"] == "array":
        return f"list: {values(facts['items'])}"
    is_path = facts.get("format") == "path"
    kind = "path" if is_path else str(TYPES.get(facts["type"], facts["type"]))
    bounds = [
        f"{sign} {facts[name]:,}".removesuffix(".0")
        for name, sign in BOUNDS.items()
        if name in facts
    ]
    return ", ".join([kind, *(bound.replace(",", " ") for bound in bounds)])


def choices(facts: Facts) -> list[str]:
    return facts["enum"] if "enum" in facts else [facts["const"]]


def classes(facts: Facts) -> list[str]:
    """The classes of options that a value, or an item of a list, may be."""
    if "$ref" in facts:
        return [str(facts["$ref"].rpartition("/")[2])]
    items = facts.get("items")
    inner = (
        *facts.get("anyOf", ()),
        *facts.get("oneOf", ()),
        *([items] if isinstance(items, dict) else []),
    )
    return list(dict.fromkeys(name for one in inner for name in classes(one)))


def place(facts: Facts) -> str:
    """The first key that takes the same kinds, in whose section they are; "" if the value has no
    kinds.
    """
    wanted = classes(facts)
    for key, top in SCHEMA["properties"].items():
        inner = classes(top)
        part = SCHEMA["$defs"][inner[0]]["properties"] if len(inner) == 1 else {}
        for name, one in {key: top, **{f"{key}.{name}": one for name, one in part.items()}}.items():
            if len(wanted) > 1 and classes(one) == wanted:
                return name
    return ""
