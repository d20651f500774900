"""Declare every option of what leaves for the Hub or for another runtime, once. All other options are in `_options`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from stm_cli._panels import HUB, OUTPUT, choice, option
from stm_cli._parsers import _blocks, _whole

RepoId = Annotated[
    str | None,
    typer.Argument(
        metavar="REPO_ID", help="OWNER/NAME on the Hub. Default: the folder's name, your own.", show_default=False
    ),
]
Private = Annotated[bool, option("--private", HUB, "Make a repository that only you may see.")]
Branch = Annotated[
    str | None, option("--revision", HUB, "The branch to write; made where it is missing. Default: main.", "BRANCH")
]
CommitMessage = Annotated[str | None, option("--commit-message", HUB, "Of the one commit.", "TEXT")]
CreatePr = Annotated[bool, option("--create-pr", HUB, "Propose the commit as a pull request.")]
ExistOk = Annotated[bool, option("--exist-ok/--no-exist-ok", HUB, "Whether the repository may exist. Default: it may.")]
OverwriteCard = Annotated[bool, option("--overwrite-card", HUB, "Replace a README.md that stm did not write.")]
# On the panel of the Hub: `stm push` reads no source, so it has no panel of that name.
PushToken = Annotated[str | None, option("--token", HUB, "Hub token. Default: the one you logged in with.", "TOKEN")]
PushDryRun = Annotated[bool, option("--dry-run", OUTPUT, "Show what would be uploaded; write nothing.")]
PushTo = Annotated[
    str | None, option("--push-to", OUTPUT, "Push the folder to this Hub repository, as stm push does.", "REPO_ID")
]
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
    int | None,
    option("--batch-size", OUTPUT, "The only batch size that the export takes. Default: any.", "N", parser=_whole(1)),
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
OutFile = Annotated[
    Path | None, option("--out", OUTPUT, "The file or folder to write. Default: named after the model.", "PATH")
]
ForceFile = Annotated[bool, option("--force", OUTPUT, "Replace a file, or a folder that stm wrote.")]
