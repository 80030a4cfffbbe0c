"""What the teacher cache saves with the paper's teacher, computed from the costs of one sample on this machine.

    OMP_NUM_THREADS=1 python benchmarks/train/step_costs.py [--epochs 30]

AltCLIP as published (ViT-L/14 and XLM-RoBERTa-large, 864 M parameters) and the student S, both with random weights,
which cost the same; 224 px, a Chinese and an English caption of TOKENS each. The student's step is forward, backward
and AdamW in fp32. Reading pictures is not in it: it costs the same with the cache and without. CPU seconds of a thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch.nn import functional as F
from transformers import AltCLIPConfig, AltCLIPModel

from dcclip_cli.model.students import ImageTower, StudentOptions, build_model, model_config, preprocessing_of
from dcclip_cli.model.towers import OpenClipTowers, Tokens

TOKENS = 24
EMBED_DIM = 768
TEXT = {
    "vocab_size": 250002,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "max_position_embeddings": 514,
    "project_dim": EMBED_DIM,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": EMBED_DIM,
    "hidden_act": "quick_gelu",
}


def seconds(work: Callable[[], object], rounds: int) -> float:
    """CPU seconds of one call, the fastest of some rounds after one to warm up."""
    work()
    taken = []
    for _ in range(rounds):
        begin = time.process_time()
        work()
        taken.append(time.process_time() - begin)
    return min(taken)


def student_step(batch: int) -> tuple[int, Callable[[], None]]:
    """The student S and its training step on so many samples of two captions each."""
    options = StudentOptions.model_validate({"preset": "S"})
    assert isinstance(options.image, ImageTower)
    model = build_model(model_config(options, EMBED_DIM, options.text.vocabulary.size), seed=0)
    model.visual.to(memory_format=torch.channels_last)
    towers = OpenClipTowers(model, no_texts, preprocessing_of(options.image), "S", "S")
    optimizer = torch.optim.AdamW(model.parameters())
    pixels = torch.randn(batch, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    ids = torch.randint(4, options.text.vocabulary.size, (2 * batch, TOKENS))
    ids[:, -1] = 2  # the end token, at which the tower pools
    tokens = Tokens(ids, torch.ones_like(ids))
    targets = torch.randn(batch, EMBED_DIM), torch.randn(2 * batch, EMBED_DIM)

    def step() -> None:
        image, text = towers.image_features(pixels).embedding, towers.text_features(tokens).embedding
        loss = 2 - F.cosine_similarity(image, targets[0]).mean() - F.cosine_similarity(text, targets[1]).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return sum(parameter.numel() for parameter in model.parameters()), step


def no_texts(lines: list[str]) -> Tokens:
    """Nothing is tokenised here: the step gets token numbers."""
    raise NotImplementedError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    epochs = given.epochs

    batch = 32
    count, step = student_step(batch)
    student = seconds(step, given.rounds) / batch
    print(f"student S, {count / 1e6:.1f} M: {1000 * student:.1f} ms a sample and step", flush=True)

    with torch.device("meta"):
        teacher = AltCLIPModel(AltCLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=EMBED_DIM))
    teacher = teacher.to_empty(device="cpu").eval()
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            parameter.normal_(std=0.02) if parameter.ndim > 1 else parameter.fill_(float(name.endswith("weight")))
        for name, buffer in teacher.named_buffers():
            if "position_ids" in name:
                buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
            elif not buffer.is_floating_point():
                buffer.zero_()
    size = sum(parameter.numel() for parameter in teacher.parameters())
    pixels, ids = torch.randn(4, 3, 224, 224), torch.randint(4, 250000, (16, TOKENS))
    mask = torch.ones_like(ids)
    print(f"teacher AltCLIP, {size / 1e6:.1f} M", flush=True)
    print("| teacher | an image | a caption | K | without cache, a sample | with cache, a sample | gain |")
    print("|---|---|---|---|---|---|---|")
    for precision in ("fp32", "bf16"):
        autocast = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
        with torch.no_grad(), autocast:
            image = seconds(lambda: teacher.get_image_features(pixel_values=pixels), given.rounds) / len(pixels)
            text = seconds(lambda: teacher.get_text_features(input_ids=ids, attention_mask=mask), given.rounds)
        text /= len(ids)
        online = epochs * (image + 2 * text + student)
        for repeats in (1, 10):
            cached = repeats * image + 2 * text + epochs * student
            print(
                f"| {precision} | {image:.3f} s | {text:.3f} s | {repeats} | {online:.1f} s | {cached:.2f} s | "
                f"{online / cached:.1f} x |",
                flush=True,
            )


if __name__ == "__main__":
    main()
