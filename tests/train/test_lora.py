"""LoRA: few parameters are trained, by all that a stage offers, and the saved model is as any other."""

from pathlib import Path

import torch
from safetensors import safe_open

from dcclip_cli.model.model_dir import load_model
from dcclip_cli.train.lora import LoraOptions, add_lora, merge_lora
from tests.train.jobs import Job, elsewhere, run, weights


def moments(job: Job) -> int:
    """Bytes of the optimizer's state in the checkpoint of a job's run."""
    [file] = Path(job["root"], job["stage"], "state").glob("*/tensors.safetensors")
    with safe_open(file, "pt") as tensors:
        states = [tensors.get_tensor(name) for name in tensors.keys() if name.startswith("optimizer/")]  # noqa: SIM118
    return sum(tensor.nbytes for tensor in states)


def test_linear_layers_attention_and_1_x_1_convolutions_change_and_the_optimizer_takes_a_quarter(aligning: Job) -> None:
    start = weights(Path(aligning["options"]["start"]))
    full = elsewhere(aligning, "whole")
    small = elsewhere(aligning, "small", {"lora": {"rank": 1}})
    run(full)
    result = run(small)
    assert moments(small) <= moments(full) / 4
    tuned = weights(result)
    assert {name: value.shape for name, value in tuned.items()} == {name: value.shape for name, value in start.items()}
    learned = {name for name, value in tuned.items() if not value.equal(start[name])}
    statistics = {name for name in start if "running_" in name or name.endswith("num_batches_tracked")}
    assert learned - statistics == {
        name
        for name, value in start.items()
        if name == "logit_scale"
        or "projection" in name
        or ".head." in name
        or any(part in name for part in ("in_proj_weight", "c_fc.weight", "c_proj.weight"))
        or (value.ndim == 4 and value.shape[2:] == (1, 1))
    }
    assert any("conv_pw.weight" in name for name in learned) and statistics <= learned
    texts = "".join(file.read_text("utf-8") for file in result.model.glob("*.json") if "tokenizer" not in file.name)
    assert "lora" not in texts.lower() and "peft" not in texts and "adapter" not in texts


def test_the_merged_model_gives_what_the_trained_one_gave(model_folder: Path) -> None:
    towers = load_model(model_folder)
    model = towers.model
    tokens = towers.tokenize(["一只红色的猫", "a red cat"])
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def outputs() -> list[torch.Tensor]:
        with torch.no_grad():
            return [towers.image_features(pixels).embedding, towers.text_features(tokens).embedding]

    before = outputs()
    names = set(model.state_dict())
    add_lora(model, LoraOptions(rank=2), None, 0)
    for tensor, loaded in zip(before, outputs(), strict=True):
        torch.testing.assert_close(tensor, loaded)  # the second matrices begin with zeros
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    trained = outputs()
    merge_lora(model)
    assert set(model.state_dict()) == names and "lora" not in repr(model)
    for tensor, loaded, old in zip(trained, outputs(), before, strict=True):
        torch.testing.assert_close(tensor, loaded, rtol=1e-4, atol=1e-5)
        assert (tensor - old).abs().max() > 1e-3
