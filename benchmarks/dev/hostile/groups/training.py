"""Options of training and export that are valid one by one, or nearly: extreme, and at odds with each other."""

from __future__ import annotations

from random import Random

from benchmarks.dev.hostile.case import Case, Expect
from benchmarks.dev.hostile.damage import short

_PARTS = ("recipe.yaml", "train.parquet", "teacher", "cache/teacher-cache", "cache/index", "cache/teachers")
# Cases: `--set` options with `&` between them; STAGE is distill or align.
_REFUSED = """
student.image.timm=test_resnt ; student.image.timm=hf-hub:x/y ; student.image.timm='' ;
student.image.weights=timm & student.image.timm=resnet18 ; student.image.weights=./none.safetensors ;
student.image.weights=./train.parquet ; student.text.heads=7 ; student.text.heads=1000 ;
student.image.timm=vit_tiny_patch16_224 & student.image.size=65 ; student.image.size=100000 ; student.embed_dim=7 ;
student.embed_dim=true ; student.text.vocabulary.size=5 ; student.text.inherit=layers ; student.preset=XL ;
STAGE.optimizer.lr=1e300 ; STAGE.optimizer.lr=1e400 ; STAGE.optimizer.lr=-1 ; STAGE.steps=true ; STAGE.steps='12' ;
STAGE.steps=1e18 ; STAGE.steps=10**18 ; STAGE.steps=1000000000000000000 ; STAGE.steps=null & STAGE.epochs=1e300 ;
STAGE.steps=null & STAGE.epochs=.inf ; STAGE.augmentations=1000000000 ; STAGE.augment.scale=[0, 0] ;
STAGE.augment.scale=[2, 1] ; STAGE.augment.scale=[-1, 1] ; STAGE.augment.scale=[.nan, 1] ; STAGE.augment.blur=1e300 ;
STAGE.threads=100000 ; STAGE.threads=99999999999999999999 ; STAGE.workers=100000 ; STAGE.batch_size=1000000000000 ;
STAGE.batch_size=99999999999999999999 ; STAGE.warmup_steps=99999999999999999999 ; STAGE.accumulate=3 ;
STAGE.precision=fp16 ; STAGE.losses=[] ; STAGE.losses=[{kind: none}] ;
STAGE.losses=[{kind: feature_map, student_layers: [99], teacher_layers: [99]}] ;
STAGE.losses=[{kind: embedding, weight: -1}] ; STAGE.losses=[{kind: embedding, weight: .nan}] ;
STAGE.validate_every_steps=1 & data.validation=./none.parquet ; data.train=./none.parquet ; data.train=./recipe.yaml ;
data.train=[] ; data.images=./none ; data.texts=./none.txt ; data.texts=./train.parquet/x ;
data.columns.image=nosuch ; data.cache_gb=.nan ; teacher.model=./none ; teacher.model=./recipe.yaml ; teacher.model= ;
teacher.kind=none ; teacher.model=hf:../../etc ; name=../x ; seed=-1 ; seed=4294967296 ;
seed=1.5
"""
_ODD = """
STAGE.optimizer.lr=1e-300 ; STAGE.optimizer.lr=100 ; STAGE.augment.rotate=180 & STAGE.augment.scale=[0.0001, 0.0001] ;
STAGE.augment.blur=500 ; STAGE.clip_norm=1e-300 ; STAGE.ema=0.999999999 ; STAGE.batch_size=2 ; STAGE.batch_size=1000 ;
STAGE.steps=null & STAGE.epochs=0.001 ; STAGE.checkpoint_every_steps=1 ;
STAGE.validate_every_steps=1 & STAGE.keep=best & STAGE.patience=1 ; data.shuffle_window=1 ; data.cache_gb=1e-9 ;
STAGE.captions.languages=[zh] ; STAGE.captions.caption_fraction=0.01 ;
STAGE.losses=[{kind: embedding, weight: 1e30}] ; student.text.context_length=8 ; student.image.size=33 ;
STAGE.optimizer.kind=muon ; STAGE.teacher_cache=false ; teacher.kind=open_clip
"""


def _cases(text: str) -> list[str]:
    return " ".join(text.split()).split(" ; ")


def _stage(random: Random, line: str, expect: Expect, check: bool) -> Case:
    stage = random.choice(("distill", "align"))
    if stage == "align" and line.startswith(("teacher.", "STAGE.losses=[]")):
        expect = Expect.ANY  # it needs neither a teacher nor more than its own loss
    sets = line.replace("STAGE", stage).split(" & ") + (["align.start=scratch"] if stage == "align" else [])
    arguments = [stage, "recipe.yaml", *(part for one in sets for part in ("--set", one)), *["--check"][: int(check)]]
    return Case(f"{stage} {short(line)}{' --check' * check}", arguments, _PARTS, expect=expect, limit_s=60)


def refused(random: Random) -> Case:
    """What --check refuses, and the stage itself."""
    line, check = random.choice(_cases(_REFUSED)), random.random() < 0.7
    needs_run = line.startswith(("STAGE.optimizer.lr=1e300", "STAGE.losses=[{kind: feature_map"))
    return _stage(random, line, Expect.ANY if needs_run and check else Expect.REFUSED, check)


def odd(random: Random) -> Case:
    """What may be refused or do its work."""
    return _stage(random, random.choice(_cases(_ODD)), Expect.ANY, check=False)


_FORMATS = "none openvino coreml torchscript executorch litert"
_EXPORT = (
    *(f"--format {name}" for name in _FORMATS.split()),
    *(f"--precision {name}" for name in ("int4", "int8", "bf16", "fp16")),
    *(f"--out {name}" for name in ("", "teacher", ".", "/")),
    *("--calibration none", "--calibration recipe.yaml --precision int8", "--check", "--set a=b"),
)


def export(random: Random) -> Case:
    """Options of export that are at odds."""
    given = random.choice(_EXPORT)
    arguments = ["export", "--model", "model", *(() if "--out" in given else ("--out", "out")), *given.split(" ")]
    return Case(f"export {given}", arguments, ("model", "teacher", "recipe.yaml"), limit_s=60)


RULES = (refused, refused, refused, odd, export)
