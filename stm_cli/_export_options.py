"""The options of `stm export` alone."""

from collections.abc import Sequence
from typing import Annotated

from stm_cli._panels import OUTPUT, choice, option
from stm_cli._parsers import _blocks

ExportFormat = Annotated[
    str,
    choice(
        "--format",
        OUTPUT,
        "a .pth that hustvl/Vim loads, a dense folder of ours, or the model as it is for another runtime; pt2 and"
        " aoti are for PyTorch alone.",
        ("official", "folder", "onnx", "openvino", "pt2", "aoti"),
    ),
]
ExportBatch = Annotated[
    int | None, option("--batch-size", OUTPUT, "The only batch size that the export takes. Default: any.", "N")
]
DynamicBatch = Annotated[bool, option("--dynamic-batch", OUTPUT, "Take batches of any size, which is the default.")]
WithPreprocessing = Annotated[
    bool,
    option("--with-preprocessing", OUTPUT, "Take uint8 images (B, H, W, C) of the model's size, give probabilities."),
]
Features = Annotated[
    bool, option("--features", OUTPUT, "Give patch features (B, D, H', W') instead of logits. Backbones always do.")
]
OutIndices = Annotated[
    Sequence[int] | None,
    option(
        "--out-indices",
        OUTPUT,
        "With --features: give those that leave these blocks, from 0 on or from the end if negative.",
        "BLOCK,...",
        parser=_blocks,
    ),
]
