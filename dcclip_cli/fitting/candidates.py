"""Students that may fit a budget: image networks, image sizes and text towers, and what their
exports take.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dcclip_cli.exporters.export import ExportOptions, ExportResult, export
from dcclip_cli.exporters.parity import Thresholds
from dcclip_cli.inference.encoder import footprint, load_encoder
from dcclip_cli.inference.onnx_encoder import IMAGE, TEXT
from dcclip_cli.model.reference import resolve
from dcclip_cli.model.students import StudentOptions
from dcclip_cli.recipe.new import StudentChoice, TeacherChoice
from dcclip_cli.recipe.run import RecipeRun

# timm's networks that are fast on CPUs and quantize well; those that the teacher's weights fit are
# preferred.
NETWORKS = (
    *(
        "mobilenetv2_035",
        "mobilenetv2_050",
        "mnasnet_050",
        "mobilenetv2_075",
        "mnasnet_075",
        "mobilenetv2_100",
    ),
    *("mnasnet_100", "efficientnet_lite0", "mobilenetv4_conv_small", "mobilenetv4_conv_medium"),
)
# Layers, width, tokens and embedding size of text towers, the largest first. On Caltech, half of
# the width costs 9 points of 44, half of the embedding 3, and tokens that no text needs nothing.
# 300 tokens are the least possible.
LABEL_TEXTS = ((1, 64, 2_400, 128), (1, 64, 1_200, 128), (1, 64, 300, 128), (1, 64, 300, 64))
CAPTION_TEXTS = ((2, 256, 8_000, 256), (1, 128, 4_000, 128), *LABEL_TEXTS[:1])
# pixels: sides of images are multiples, from the smallest one
_STRIDE = 32
_SMALLEST = 64
# The best side as a fraction of the teacher's: 128 of 224 where the network learns, 192 where it
# is the teacher's own.
_BEST_SIDE = 0.62
_BEST_OWN_SIDE = 0.86
# milliseconds are about this power of multiply-adds; less than that is possible
_EXPONENT = 0.6
_OPTIMISM = 0.7


@dataclass(frozen=True)
class Cost:
    """What an export takes: its folder in MB, and milliseconds for an image and for a short text."""

    mb: float
    ms: float
    text_ms: float = 0.0


@dataclass(frozen=True)
class Budget:
    """The largest export in MB, the longest latency of an image in milliseconds, and the CPU
    threads that it takes.
    """

    max_mb: float | None
    max_ms: float | None
    threads: int = 1

    def fits(self, cost: Cost, margin: float = 1.0) -> bool:
        """Whether an export of this cost is within the budget, also if its latency is longer by a
        `margin`.
        """
        return cost.mb <= (self.max_mb or cost.mb) and (
            not self.max_ms or margin * cost.ms <= self.max_ms
        )


@dataclass(frozen=True)
class Candidate:
    """A student of the grid; multiply-adds are those of its image network."""

    student: StudentChoice
    parameters: int
    macs: int

    @property
    def bytes(self) -> int:
        """Bytes of its int8 weights and tokenizer.json. The graph of a larger network adds 5 % of
        the difference.
        """
        return self.parameters + 29 * self.student.tokens


def list_candidates(
    teacher: TeacherChoice, towers: Any, needed_tokens: int | None
) -> dict[str, list[Candidate]]:
    """The grid by network, the largest first, of each the best image sizes first; on torch's meta
    device.

    `towers` are the teacher's without weights, None where its files are not here. The texts that
    are learned need `needed_tokens`, None for captions. If any network can begin with the
    teacher's weights, only those are in the grid.
    """
    import torch

    from dcclip_cli.model.blank import blank_student
    from dcclip_cli.model.inherit import misfit
    from dcclip_cli.train.speed import forward_flops

    grid: dict[str, list[Candidate]] = {}
    least = needed_tokens or 0
    texts = CAPTION_TEXTS if needed_tokens is None else LABEL_TEXTS
    differences: dict[
        int, int
    ] = {}  # of the parameters between text towers, almost the same with all networks
    sides = range(_SMALLEST, max(_SMALLEST, teacher.pixels) + 1, _STRIDE)
    for network in NETWORKS:
        for number, of_text in enumerate(
            dict.fromkeys((*text[:2], max(least, text[2]), text[3]) for text in texts)
        ):
            layers, width, tokens, embed_dim = of_text
            if not number or number not in differences:
                text = {"layers": layers, "width": width, "vocabulary": {"size": tokens}}
                options = StudentOptions.model_validate(
                    {"image": {"timm": network, "size": _SMALLEST}, "text": text}
                )
                blank = blank_student(options, embed_dim)
                if not number:
                    flops = forward_flops(blank, torch.zeros(1, 3, _SMALLEST, _SMALLEST), ())
                    macs_per_pixel = flops.image / 2 / _SMALLEST**2
                    parameters = blank.parameters_count()
                    inherits = not misfit(blank.model.visual, towers)
                differences.setdefault(number, blank.parameters_count() - parameters)
            choice = StudentChoice(network, _SMALLEST, layers, width, tokens, embed_dim, inherits)
            best = teacher.pixels * (_BEST_OWN_SIDE if network == teacher.network else _BEST_SIDE)
            for side in sorted(sides, key=lambda side: max(side / best, best / side)):
                sized = (
                    replace(choice, pixels=side),
                    parameters + differences[number],
                    round(macs_per_pixel * side**2),
                )
                grid.setdefault(network, []).append(Candidate(*sized))
    inheriting = {
        network: of_network
        for network, of_network in grid.items()
        if of_network[0].student.inherits
    }
    return dict(sorted((inheriting or grid).items(), key=lambda entry: -entry[1][0].parameters))


def promising(
    of_network: Sequence[Candidate], budget: Budget, costs: Mapping[Candidate, Cost]
) -> Iterator[Candidate]:
    """The candidates of a network that may fit the budget, by those that have been measured while
    this is iterated.
    """
    for candidate in of_network:
        siblings = [entry for entry in costs if entry.student.network == candidate.student.network]
        twins = [entry for entry in siblings if entry.student.pixels == candidate.student.pixels]
        # The size does not depend on the image size, nor the latency of an image on the text
        # tower.
        mb = min(
            costs[entry].mb + (candidate.bytes - entry.bytes) / 1e6 for entry in siblings or costs
        )
        ratios = {entry: (candidate.macs / entry.macs) ** _EXPONENT for entry in twins or costs}
        ms = min(costs[entry].ms * ratio for entry, ratio in ratios.items()) * (
            1 if twins else _OPTIMISM
        )
        is_measured = any(
            budget.fits(costs[entry]) for entry in twins if entry.parameters >= candidate.parameters
        )
        if not is_measured and budget.fits(Cost(mb, ms)):
            yield candidate


def cost_of(exported: ExportResult, budget: Budget, attempts: int = 3) -> Cost:
    """The cost of an export; its latency is the least of some measurements."""
    encoder = load_encoder(resolve(str(exported.folder)), "cpu", threads=budget.threads)
    measured = min(
        (footprint(encoder, 0.4, budget.threads) for _ in range(attempts)),
        key=lambda entry: entry.image_ms,
    )
    return Cost(
        round(exported.size_bytes / 1e6, 4), round(measured.image_ms, 3), round(measured.text_ms, 3)
    )


def cost_of_random(job: RecipeRun, images: Path, budget: Budget, traced: Path) -> Cost:
    """The cost of a recipe's export: of its student with random weights, calibrated on a few
    `images`.

    Most of the time of an export is torch's tracing: the graphs in `traced` serve for all
    candidates with that text tower, or that image network at any size.
    """
    import onnx
    import torch

    from dcclip_cli.train.stage import Stage

    recipe = job.loaded.recipe
    folder = job.dir.root
    student = recipe.student
    options = recipe.distill
    assert student and options and recipe.data and not isinstance(student.image, str)
    nothing = {
        "inherit": "nothing"
    }  # the teacher's weights change neither size nor time, and take time to load
    towers = {
        "image": student.image.model_copy(update=nothing),
        "text": student.text.model_copy(update=nothing),
    }
    stage = Stage(options, job.dir, recipe.data, recipe.teacher, student.model_copy(update=towers))
    for tensor in (
        stage.student.towers.model.state_dict().values()
    ):  # of equal ones, such as biases, one is stored
        tensor += 0.01 * torch.rand_like(tensor) if tensor.is_floating_point() else 0
    stage.student.save(folder / "model", {})
    graphs = folder / "graphs"
    text = student.text
    dims = student.embed_dim
    stored = {
        IMAGE: f"{student.image.timm}-{dims}",
        TEXT: f"{text.width}-{text.vocabulary.size}-{dims}",
    }
    for name in (name for name in stored.values() if (traced / name).is_dir()):
        shutil.copytree(traced / name, graphs, dirs_exist_ok=True)
    if (graphs / IMAGE).is_file():
        model = onnx.load(graphs / IMAGE, load_external_data=False)
        for side in model.graph.input[0].type.tensor_type.shape.dim[2:]:
            side.dim_value = student.image.size
        shapes = model.graph.value_info
        weights = {weight.name for weight in model.graph.initializer}
        for shape in [
            shape for shape in shapes if shape.name not in weights
        ]:  # at the size that was traced
            shapes.remove(shape)
        (graphs / IMAGE).write_bytes(onnx.shape_inference.infer_shapes(model).SerializeToString())
    lax = Thresholds(min_centred_cosine=-1, min_agreement=0)
    export_options = ExportOptions(
        precision="int8", calibration=str(images), calibration_images=16, parity=lax
    )
    student_model = resolve(str(folder / "model"))
    exported = export(
        options=export_options, model=student_model, out=folder / "export", fp32_graphs=graphs
    )
    for file, name in stored.items():
        if not (traced / name).is_dir():
            (folder / name).mkdir()  # if the search is stopped now, the next one removes `folder`
            for part in graphs.glob(f"{file}*"):
                shutil.copyfile(part, folder / name / part.name)
            traced.mkdir(exist_ok=True)
            (folder / name).rename(traced / name)
    return cost_of(exported, budget)
