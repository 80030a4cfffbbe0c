"""The page of all recipe keys, from the JSON Schema of recipes."""

import json
import re
from typing import Any

from dcclip_cli.curation.options import CollectOptions
from dcclip_cli.errors import Language
from dcclip_cli.options import neutral_keys
from dcclip_cli.recipe.schema import Recipe
from dcclip_cli.train.options import TrainOptions
from docs.generate.markdown import MADE, anchor, code, table, text

ENGLISH = """\
# Recipes

A recipe is one YAML file that describes a model from data to device: settings that several stages share are at the
top, followed by a section for each stage. Each command reads its own section and the shared ones; `dcclip run` runs
every stage that has a section. Everything that a recipe makes is in `runs/NAME/`, together with the recipe:
`recipe.yaml` as written, `resolved.yaml` with overrides, defaults and library versions. In Python, keyword arguments
are keys of the stage's section: `dcclip.distill("recipe.yaml", steps=300)`; see [Getting
started](../getting-started.md).

## Common keys

COMMON
## Recipes in the repository

| recipe | makes |
|---|---|
| [quickstart.yaml](../../recipes/quickstart.yaml) | a small CLIP of emoji, from data to export in minutes |
| [emoji.yaml](../../recipes/emoji.yaml) | the same student trained six times as long ([results](../results/emoji.md)) |
| [emoji-contrast.yaml](../../recipes/emoji-contrast.yaml) | the same student without a teacher, for comparison |
| [emoji-tenth.yaml](../../recipes/emoji-tenth.yaml) | a student at a tenth of the demo teacher's size |
| [demo-teacher.yaml](../../recipes/demo-teacher.yaml) | the teacher of the quick start |
| [starter.yaml](../../recipes/starter.yaml) | the model included in dcclip: see [Starter](../starter.md) |
| [text-tower.yaml](../../recipes/text-tower.yaml) | a text tower for [another CLIP's images](../how-to/text-tower.md) |
| [distill-photos.yaml](../../recipes/distill-photos.yaml) | a smaller model distilled from it on your own photographs |
| [collect-sample.yaml](../../recipes/collect-sample.yaml) | shards from a small table with errors in it |
| [dc-clip.yaml](../../recipes/dc-clip.yaml) | the paper's setup with AltCLIP; explains every open choice |
| [collect-laion-zh.yaml](../../recipes/collect-laion-zh.yaml), ... | public data: [Collect](../how-to/collect.md) |

```sh
dcclip run recipes/quickstart.yaml --check
dcclip recipe show recipes/quickstart.yaml
dcclip recipe schema
```

The first checks all that the recipe needs (see below) without running anything; the second prints every default; the
third prints the JSON Schema, with which an editor completes and checks keys.

## Rules

* `--check` builds what it checks: student, teachers and losses by their shapes, without weights. The first image of
  each data source is decoded, and captions are looked for in the languages of the stage. Every mistake is an error with
  file, line and key. It prints for each training stage how many steps there are, what the teacher will encode
  that is not in its cache, how long both take, measured for some seconds, and the disk space of cache and checkpoints.
  With `data: {train: collect}`, that is for all pairs of the sources until they are collected, then for those kept.
  A run does the same checks before it starts, and announces teacher work of more than half an hour.

* A value that starts with `./`, `../` or `/` is a path, relative to the recipe's own folder (in `--set` and in
  Python, to the current directory). Any other model or data name is a name on the hub or in a registry.
* `--set distill.steps=300` overrides a value, with the same checks. Items of a list have numbers: `--set
  distill.losses.0.weight=2`. A stage that the recipe lacks is given whole: `--set 'eval={datasets: [cifar10-cn]}'`.
* An unknown or repeated key is an error that names file, line and the nearest valid key; all mistakes are reported at
  once.
* Only YAML 1.2 scalars are read: `no` is text, `1e-3` a number. Anchors, aliases and tags are rejected.
* Values are strict: `true` or `'12'` is no number, `1e3` is no whole number; every number has bounds, as listed below.
* If the recipe of a finished stage has changed, the stage is refused: `--fresh` makes it again, `--out DIR` keeps
  both. Keys that change no result may differ (NEUTRAL_KEYS).

## All keys

In the tables, *required* marks a key without a default, and `null` a key that may be omitted. The languages are
`zh` and `en`.
"""
CHINESE = """\
# 配方的键

配方（recipe）是一个 YAML 文件，从数据到设备描述一个模型：几个阶段共用的设置写在最上面，后面每个阶段一节。
每个命令只读自己那一节和共用的设置；`dcclip run` 依次运行配方里有的阶段。产物和配方都在 `runs/NAME/`：
`recipe.yaml` 是原文，`resolved.yaml` 补全了覆盖值、默认值和各库的版本。
Python 里的关键字参数就是该阶段的键：`dcclip.distill("recipe.yaml", steps=300)`，见[入门](../getting-started.zh.md)。

## 常用的键

COMMON
## 规则

* 以 `./`、`../` 或 `/` 开头的值是路径，相对于配方所在的文件夹（`--set` 和 Python 里相对于当前目录）。
  其他的模型名、数据名来自 Hugging Face 或内置列表。
* `--set distill.steps=300` 覆盖一个值，检查同样严格。列表的项用编号：`--set distill.losses.0.weight=2`。
  配方里没有的阶段要整节写出：`--set 'eval={datasets: [cifar10-cn]}'`。
* 不认识的键、重复的键会报错，写明文件、行号和最接近的键；所有错误一次报完。改过名的旧键仍然可用，会打印一条警告。
* 只认 YAML 1.2 的标量：`no` 是文本，`1e-3` 是数。不接受锚点、别名和标签。
* 值的类型和范围都严格检查：`true` 和 `'12'` 不是数，`1e3` 不是整数。
* 已完成的阶段如果配方变了，不会直接沿用：用 `--fresh` 重做，或用 `--out DIR` 两份都留。
  不影响结果的键可以不同（NEUTRAL_KEYS）。
* `--check` 只检查、不运行：模型、数据、损失、磁盘空间和大致用时。

## 全部的键

下面各表中，*必填*的键没有默认值，默认值为 `null` 的键可以不写。语言写 `zh` 和 `en`。
"""
HEAD: dict[Language, str] = {"en": ENGLISH, "zh": CHINESE}
# The words of the tables in Chinese. What is not here is the same in both languages.
WORDS = {
    "The top": "顶层",
    "distill and align": "distill 和 align",
    "weight of a loss that changes over the run": "随训练变化的损失权重",
    "*required*": "*必填*",
    "its defaults": "见该节的默认值",
    "see": "见",
    "or": "或",
    "a mapping with": "映射，种类写在",
    "list": "列表",
    "list of": "列表，长度",
    "path": "路径",
    "text": "文本",
    "integer": "整数",
    "number": "数",
    "object": "映射",
    "multiple of": "倍数",
}
_WORD = re.compile("|".join(rf"(?<![\w.]){re.escape(word)}(?![\w.])" for word in sorted(WORDS, key=len, reverse=True)))
# The keys that most recipes set, in the order of a recipe.
COMMON = (
    *("name", "teacher", "student.preset", "student.embed_dim"),
    *("data.train", "data.images", "data.texts", "data.validation"),
    *("collect.sources", "collect.filters"),
    *("distill.steps", "distill.epochs", "distill.batch_size", "distill.accumulate", "distill.losses"),
    *("distill.optimizer", "distill.precision", "align.start", "align.steps", "align.batch_size", "align.lock"),
    *("eval.datasets", "eval.data_root", "export.format", "export.precision"),
)
# Heading of each part of the schema, in the page's order.
SECTIONS = {
    "Recipe": "The top",
    "AltClipTeacher": "teacher: {kind: altclip}",
    "TransformersTeacher": "teacher: {kind: transformers}",
    "OpenClipTeacher": "teacher: {kind: open_clip}",
    "FgClip2Teacher": "teacher: {kind: fgclip2}",
    "StudentOptions": "student",
    "ImageTower": "student.image",
    "TextTower": "student.text",
    "Vocabulary": "student.text.vocabulary",
    "DataOptions": "data",
    "Columns": "data.columns",
    "CollectOptions": "collect",
    "FolderSource": "collect.sources: {kind: folder}",
    "TableSource": "collect.sources: {kind: table}",
    "TarsSource": "collect.sources: {kind: tars}",
    "ClassFoldersSource": "collect.sources: {kind: class_folders}",
    "HubSource": "collect.sources: {kind: hub}",
    "Base64Source": "collect.sources: {kind: base64}",
    "CaptionsSource": "collect.sources: {kind: captions}",
    "FetchOptions": "collect.fetch",
    "NormalizeOptions": "collect.normalize",
    "ImageFilter": "collect.filters: {kind: image}",
    "BlankFilter": "collect.filters: {kind: blank}",
    "GarbledFilter": "collect.filters: {kind: garbled}",
    "MarkupFilter": "collect.filters: {kind: markup}",
    "WordlessFilter": "collect.filters: {kind: wordless}",
    "FilenameFilter": "collect.filters: {kind: filename}",
    "BoilerplateFilter": "collect.filters: {kind: boilerplate}",
    "RepetitionFilter": "collect.filters: {kind: repetition}",
    "LengthFilter": "collect.filters: {kind: length}",
    "LanguageFilter": "collect.filters: {kind: language}",
    "ScriptFilter": "collect.filters: {kind: script}",
    "Agreement": "collect.scores: {kind: agreement}",
    "Classifier": "collect.scores: {kind: classifier}",
    "Prompts": "collect.scores: {kind: prompts}",
    "Decontaminate": "collect.decontaminate",
    "SameImage": "collect.duplicates: {kind: same-image}",
    "NearImage": "collect.duplicates: {kind: near-image}",
    "SameCaption": "collect.duplicates: {kind: same-caption}",
    "ReportOptions": "collect.report",
    "ClusterOptions": "collect.cluster",
    "SlurmOptions": "collect.cluster.slurm",
    "TrainOptions": "distill and align",
    "OptimizerOptions": "distill.optimizer, align.optimizer",
    "CaptionOptions": "distill.captions, align.captions",
    "Augment": "distill.augment, align.augment",
    "DistillOptions": "distill",
    "FeatureMapLoss": "distill.losses: {kind: feature_map}",
    "TokenFeaturesLoss": "distill.losses: {kind: token_features}",
    "EmbeddingLoss": "distill.losses: {kind: embedding}",
    "InteractiveLoss": "distill.losses: {kind: interactive}",
    "SimilarityLoss": "distill.losses: {kind: similarity}, {kind: affinity}",
    "EnsembleLoss": "distill.losses: {kind: ensemble}",
    "CrossLingualLoss": "distill.losses: {kind: cross_lingual}",
    "TaskLoss": "distill.losses: {kind: task}",
    "Schedule": "weight of a loss that changes over the run",
    "AlignOptions": "align",
    "EvalOptions": "eval",
    "ExportOptions": "export",
    "Thresholds": "export.parity",
}
HEADS: dict[Language, tuple[str, ...]] = {
    "en": ("key", "value", "default", "what it does"),
    "zh": ("键", "取值", "默认值", "作用"),
}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<", "multipleOf": "multiple of"}


def page(language: Language = "en") -> str:
    """The whole page. A class with a `kind` that SECTIONS does not name comes last, under that kind."""
    schema = Recipe.model_json_schema()
    parts = {"Recipe": schema, "TrainOptions": TrainOptions.model_json_schema(), **schema["$defs"]}
    for name in sorted(parts.keys() - SECTIONS.keys()):
        SECTIONS[name] = f"{{kind: {parts[name]['properties']['kind']['const']}}}"
    assert parts.keys() == SECTIONS.keys(), f"SECTIONS names what does not exist: {SECTIONS.keys() - parts.keys()}"
    common = table(HEADS[language], (common_row(parts, key, language) for key in COMMON))
    shared = parts["TrainOptions"]["properties"]
    for stage in ("DistillOptions", "AlignOptions"):  # keys of both are listed once
        own = {key: value for key, value in parts[stage]["properties"].items() if key not in shared}
        parts[stage] = {**parts[stage], "properties": own}
    neutral = ", ".join(f"`{key}`" for key in (*neutral_keys(TrainOptions), *neutral_keys(CollectOptions)))
    head = MADE + HEAD[language].replace("NEUTRAL_KEYS", neutral).replace("COMMON\n", common + "\n")
    return head + "".join(section(SECTIONS[name], parts[name], language) for name in SECTIONS)


def common_row(parts: dict[str, Any], key: str, language: Language) -> tuple[str, ...]:
    """The row of a key by its full name, such as `distill.steps`."""
    *sections, last = key.split(".")
    part = parts["Recipe"]
    for name in sections:
        part = parts[_name(next(one for one in part["properties"][name]["anyOf"] if "$ref" in one))]
    return row(key, part["properties"][last], last in part.get("required", ()), language)


def section(title: str, part: dict[str, Any], language: Language) -> str:
    """A heading, the docstring of the class, and a table of its keys."""
    required = part.get("required", ())
    rows = [row(key, facts, key in required, language) for key, facts in part["properties"].items() if key != "kind"]
    keys = table(HEADS[language], rows)
    about = text(part.get("description", ""), language).strip()
    return f"\n### {worded(title, language)}\n\n{about}\n" + (f"\n{keys}" if keys else "")


def row(key: str, facts: dict[str, Any], required: bool, language: Language) -> tuple[str, ...]:
    default = "*required*" if required else shown_default(facts)
    about = text(facts.get("description", ""), language)
    return code(key), worded(values(facts), language), worded(default, language), about


def worded(english: str, language: Language) -> str:
    """The few words of a title, of values or of a default in a language; a link leads to the title in it."""
    if language == "en":
        return english
    parts = re.split(r"(`[^`]*`|\(#[^)]*\))", english)
    for number, part in enumerate(parts):
        if part.startswith("(#"):
            parts[number] = f"(#{anchor(parts[number - 1].rpartition('[')[2].rstrip(']'))})"
        elif not part.startswith("`"):
            parts[number] = _WORD.sub(lambda found: WORDS[found[0]], part)
    return "".join(parts)


def shown_default(facts: dict[str, Any]) -> str:
    default = facts.get("default")
    if "$ref" in facts:
        return "its defaults"
    if isinstance(default, list) and default and isinstance(default[0], dict):
        return ", ".join(f"`{item['kind']}`" for item in default)
    return f"`{json.dumps(default, ensure_ascii=False)}`".replace('"', "")


def values(facts: dict[str, Any]) -> str:
    """The allowed values in a few words."""
    if "const" in facts:
        return f"`{facts['const']}`"
    if "enum" in facts:
        return " or ".join(f"`{value}`" for value in facts["enum"])
    if "$ref" in facts:
        title = SECTIONS[_name(facts)]
        return f"see [{title}](#{anchor(title)})"
    if "discriminator" in facts:
        return "a mapping with `kind`: " + ", ".join(f"`{kind}`" for kind in facts["discriminator"]["mapping"])
    if options := facts.get("anyOf", facts.get("oneOf")):
        return " or ".join(values(option) for option in options if option.get("type") != "null")
    if "prefixItems" in facts:
        return f"list of {len(facts['prefixItems'])} {values(facts['prefixItems'][0])}s"
    if facts["type"] == "array":
        return f"list: {values(facts['items'])}"
    kind = (
        "path"
        if facts.get("format") == "path"
        else {"boolean": "`true` or `false`", "string": "text"}.get(facts["type"])
    )
    bounds = [f"{sign} {facts[name]:,}".replace(",", " ") for name, sign in BOUNDS.items() if name in facts]
    return ", ".join([kind or facts["type"], *bounds])


def _name(facts: dict[str, Any]) -> str:
    return str(facts["$ref"].rpartition("/")[2])
