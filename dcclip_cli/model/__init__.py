"""Teachers, students, and the directories that models live in."""

from typing import Literal

Precision = Literal[
    "auto", "fp32", "bf16", "fp16"
]  # of torch models; here since the CLI needs no numpy for its help
