"""The page of file formats, from the constants, classes and docstrings of the code that writes and
reads them.
"""

import inspect
from types import ModuleType

from dcclip_cli.core import checksums, run_dir, store
from dcclip_cli.curation import collect, shards
from dcclip_cli.data import index
from dcclip_cli.data.pair import Pair
from dcclip_cli.data.shards import DROPPED
from dcclip_cli.inference import onnx_encoder as bundle
from dcclip_cli.model import model_dir, weights
from dcclip_cli.recipe import load
from dcclip_cli.recipe.summary import SUMMARY
from dcclip_cli.train import checkpoint, compute, teacher, teacher_cache
from docs.generate.markdown import MADE, code, escaped, filled, members, table

HEAD = """\
# File formats

What dcclip writes is safetensors, ONNX, tar, Parquet, Arrow and JSON, so that other programs read it. A file or folder
gets its name when it is complete. How each is checked when it is read, and what happens to a damaged one, is in
[Design](../explanation/design.md#the-contract).
"""


def page() -> str:
    parts = (run_directory, model_directory, export, pairs, shard_index, caches)
    return MADE + HEAD + "".join(f"\n{part()}" for part in parts)


def described(part: ModuleType | type) -> str:
    return f"{inspect.getdoc(part)}\n"


def files(rows: dict[str, str]) -> str:
    return table(
        ("file", "what it is"), ((code(name), escaped(text)) for name, text in rows.items())
    )


def run_directory() -> str:
    stages = (
        (
            code(f"{one.name}/"),
            code(one.product),
            ", ".join(map(code, one.made_from)),
            code(one.model or "-"),
        )
        for one in run_dir.STAGES
    )
    of_run = {
        load.VERBATIM: "the recipe as written",
        run_dir.RESOLVED: "the recipe with overrides, all defaults and the versions of libraries",
        SUMMARY: "the table that `dcclip run` prints",
    }
    of_training = {
        "model/": "the model directory that the stage leaves",
        "metrics.jsonl": "a JSON object for each logged step",
        "tensorboard/": "the same for TensorBoard",
        f"state/step-NNNNNNNN/{checkpoint.STATE}": "what a run resumes from: step, counts and the identity of the run",
        f"state/step-NNNNNNNN/{checkpoint.TENSORS}": "weights, optimizer moments and EMA",
        f"best/{checkpoint.WEIGHTS}, {checkpoint.METRICS}": "the best weights in validation, with `keep: best`",
        compute.COMPUTED_IN: "what `auto` chose on this machine: precision, threads, parts of a batch",
    }
    return (
        "## Run directory\n\n`runs/NAME/`, or what `--out` names:\n\n"
        + files(of_run)
        + "\nEach stage has a folder. It is finished when its product is there, and "
        "out of date when one of these\n"
        "sections of the recipe has changed:\n\n"
        + table(("folder", "product", "made from", "model in"), stages)
        + "\n`distill/` and `align/` contain:\n\n"
        + files(of_training)
        + f"\n### Records\n\n{described(checksums)}"
    )


def model_directory() -> str:
    rows = {
        weights.CONFIG: "the model's configuration for open_clip, and its preprocessing",
        model_dir.WEIGHTS: "the weights",
        "tokenizer.json, tokenizer_config.json": "the tokenizer of tokenizers and transformers",
        model_dir.PROVENANCE: "a record: what the model was made from, and its metrics",
        "README.md": "the model card; what you write in it stays",
    }
    return f"## Model directory\n\n{described(model_dir)}\n{files(rows)}"


def export() -> str:
    graphs = (
        (
            code(bundle.IMAGE),
            f"{code(bundle.PIXELS)} float32 (B, 3, H, W)",
            f"{code(bundle.IMAGE_EMBEDS)} (B, D)",
        ),
        (
            f"{code(bundle.IMAGE)} with `preprocess: graph`",
            f"{code(bundle.RGB)} uint8 (1, height, width, 3)",
            f"{code(bundle.IMAGE_EMBEDS)} (1, D)",
        ),
        (
            code(bundle.TEXT),
            f"{code(bundle.TOKENS)} int64 (B, L)",
            f"{code(bundle.TEXT_EMBEDS)} (B, D)",
        ),
    )
    return (
        "## Bundle\n\nWhat `dcclip export` writes for onnxruntime: two graphs, "
        f"{code(bundle.TOKENIZER)}, and {code(bundle.DESCRIPTION)}. Other formats:\n"
        "[Export and deploy](../how-to/deploy.md#formats). Embeddings have length 1.\n\n"
        + table(("graph", "input", "output"), graphs)
        + f"\n### {bundle.DESCRIPTION}\n\nA record. Of the fields, these are needed to run the"
        f" bundle:\n\n{members(bundle.Description)}\n{paragraphs(bundle.Description)}"
    )


def pairs() -> str:
    rows = {
        f"000000.tar, 000000.tar{index.SUFFIX}, ...": "shards: `KEY.jpg|png|webp` next to `KEY.json`; indexes",
        collect.MANIFEST: "counts of pairs and captions, sources with their licenses, SHA-256 of the "
        "shards, options",
        collect.REPORT: "what was kept and dropped, with examples",
        DROPPED: "every dropped pair with its reason",
    }
    return (
        f"## Pairs and shards\n\n{described(Pair)}\n{members(Pair)}\n"
        "Parquet files have these as columns (`meta` as JSON); an `embedding` may be in "
        "the place of `image`.\n"
        "In tars, `zh`, `en` and the keys of `meta` are in `KEY.json`: "
        "[Data](../how-to/data.md).\n\n"
        f"### The output of collect\n\n{described(shards)}\n{files(rows)}"
    )


def shard_index() -> str:
    columns = [f"{field.name}: {field.type}" for field in index._schema()]
    return (
        f"## Index of a shard\n\n`SHARD{index.SUFFIX}`. {described(index)}\n"
        f"Its columns:\n\n```text\n{filled('', columns, '')}\n```\n\n"
        f"### Metadata of an index\n\n{described(index.Metadata)}\n{members(index.Metadata)}"
    )


def caches() -> str:
    folders = {
        f"{teacher_cache.FOLDER}/": "feature stores: a teacher's features of augmented images and of captions",
        f"{teacher.TEACHERS}/": "facts about teachers, for which these need not be loaded",
        "features/": "feature stores: embeddings of `dcclip eval`",
        "search/, embed/": "feature stores: indexes of `dcclip search`, and what a stopped `dcclip "
        "embed` has done",
        "index/": "indexes of shards next to which none can be written",
        "shards/, images/": "shards from URLs, and images of Parquet files; each of a bounded size "
        "(`data.cache_gb`)",
        "weights/": "safetensors copies of pickled weights",
        "demo/": "the web page of `dcclip demo`",
        "npm/": "the libraries of the web page, fetched once",
    }
    return (
        "## Cache folder\n\n`$DCCLIP_CACHE`, else `~/.cache/dcclip`. All of it can be "
        "deleted: it is made again.\n\n"
        + table(
            ("folder", "what is in it"),
            ((code(name), escaped(text)) for name, text in folders.items()),
        )
        + f"\n### Feature stores\n\n{described(store)}"
    )


def paragraphs(kind: type) -> str:
    """The docstring without its first paragraph."""
    return str(inspect.getdoc(kind)).partition("\n\n")[2] + "\n"
