"""Declare every option once: the signature of a command is a list of these names and of groups of them.

Numbers and choices have parsers of their own, so that the message names a bad value. The library decides what a value
means, and whether a model allows it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from stm.config import CLASS_TOKENS, DTYPES, INTERPOLATIONS, MODES, WEIGHTS
from stm.recipe import ORDERS, PRESET_NAMES, SIDES
from stm_cli._panels import AXES, BUDGET, CHECK, FIT, HUB, MACHINE, METHOD, OUTPUT, SOURCE, TIMING, choice, option
from stm_cli._parsers import _blocks, _image_size, _list, _number, _points, _sizes, _some_of, _whole, _words

# The same sentence in every help screen: a MODEL means the same to every command.
_MODEL = (
    "A folder, a checkpoint file, an alias that stm models lists, a Hub repository (user/name), or a link to a file in"
    " one."
)
Model = Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL)]
OptionalModel = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help=f"{_MODEL} Without it: the folder here, else the only one below, else vim-digits.",
        show_default=False,
    ),
]
Images = Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files.", readable=False)]
Folder = Annotated[str, typer.Argument(metavar="FOLDER", help="A model's folder that stm wrote.")]
FolderOrRepo = Annotated[
    str,
    typer.Argument(metavar="FOLDER", help="A model's folder that stm wrote, or a Hub repository (user/name) of one."),
]
SomeImages = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="IMAGE...", help="Image files, at most 16. Default: some of what is embedded.", show_default=False
    ),
]
Peer = Annotated[
    str | None, option("--peer", METHOD, "Explain this method of stm compare, at the same operations.", "NAME")
]
Block = Annotated[
    int | None,
    option("--block", CHECK, "Show this block. Default: the first one after a merge.", "N", parser=_whole(1)),
]
Places = Annotated[
    int, option("--places", CHECK, "Distances measured on each side. Default: 98.", "N", parser=_whole(1))
]
Rate = Annotated[
    float | None,
    option("--rate", BUDGET, "The paper's rate, below 1; 0 merges nothing. Default: 0.4.", "RATE", parser=_number),
]
Saving = Annotated[
    float | None,
    option("--saving", BUDGET, "Share of the token-layers to save; 0 merges nothing.", "SHARE", parser=_number),
]
Stages = Annotated[
    Sequence[int] | None,
    option("--stages", BUDGET, "Merge all pairs before these blocks.", "BLOCK,...", parser=_blocks),
]
Speedup = Annotated[
    float | None,
    option("--speedup", BUDGET, "The smallest saving that is so many times as fast here.", "TIMES", parser=_number),
]
Recipe = Annotated[
    str | None,
    option(
        "--recipe",
        BUDGET,
        "The options in this recipe.yaml, beside which typed ones count; or those that made this model folder, here or"
        " on the Hub.",
        "PATH",
    ),
]
SaveRecipe = Annotated[
    Path | None, option("--save-recipe", OUTPUT, "Write the choice to this recipe.yaml, for --recipe.", "FILE")
]
Rates = Annotated[
    Sequence[float] | None,
    option("--rates", AXES, "The paper's rates. Default: 0.15,0.2,0.3,0.4.", "RATE,...", parser=_list(_number)),
]
SweepSides = Annotated[
    Sequence[str] | None, option("--sides", AXES, "Default: both,left,right.", "NAME,...", parser=_words)
]
Orders = Annotated[
    Sequence[str] | None,
    option("--schedules", AXES, f"Orders: {', '.join(ORDERS)}. Default: the preset's.", "NAME,...", parser=_words),
]
SweepWeights = Annotated[
    Sequence[str] | None,
    option("--weights", AXES, f"{', '.join(WEIGHTS)}. Default: the preset's.", "NAME,...", parser=_words),
]
StepScales = Annotated[
    Sequence[float] | None, option("--step-scales", AXES, "p. Default: the preset's.", "P,...", parser=_list(_number))
]
Convs = Annotated[
    Sequence[str] | None, option("--convs", AXES, "plain, span. Default: the preset's.", "NAME,...", parser=_words)
]
SweepTokensPerSide = Annotated[
    Sequence[int] | None, option("--tokens-per-side", AXES, "r, for gradual orders.", "N,...", parser=_list(_whole(1)))
]
Peers = Annotated[
    Sequence[str] | None,
    option(
        "--peers",
        AXES,
        "Methods to draw as curves. Default: paper,random,hsa,rmeeto,mtr,storm.",
        "NAME,...",
        parser=_words,
    ),
]
NoPeers = Annotated[bool, option("--no-peers", AXES, "Draw no peers.")]
SweepLimit = Annotated[
    int, option("--limit", CHECK, "Use only so many images, drawn by the seed. Default: 100.", "N", parser=_whole(1))
]
SweepOut = Annotated[
    Path | None,
    option("--out", OUTPUT, "The folder of cells, table and figure. Default: named after the model.", "DIR"),
]
CompareRate = Annotated[
    float | None,
    option("--rate", BUDGET, "The paper's rate, for both presets; peers save what ours does.", "RATE", parser=_number),
]
CompareSaving = Annotated[
    float | None,
    option(
        "--saving",
        BUDGET,
        "Share of the token-layers that ours saves; all others save as much. Default: 0.2.",
        "SHARE",
        parser=_number,
    ),
]
Methods = Annotated[
    Sequence[str] | None,
    option(
        "--methods",
        METHOD,
        "Rows beside stm and random, such as paper,hsa,rmeeto. Default: all.",
        "NAME,...",
        parser=_words,
    ),
]
At = Annotated[
    str,
    choice(
        "--at", METHOD, "where peers act: as published, where ours merges, or a row each.", ("published", "stm", "both")
    ),
]
Also = Annotated[
    Sequence[str] | None,
    option(
        "--also",
        METHOD,
        "Other dense models, such as the smaller sibling, to stand beside.",
        "MODEL,...",
        parser=_words,
    ),
]
Method = Annotated[
    str | None, choice("--method", METHOD, "the preset that the options below change. Default: stm.", PRESET_NAMES)
]
Schedule = Annotated[str | None, choice("--schedule", METHOD, "the order of the merges.", ORDERS)]
Sides = Annotated[
    str | None, choice("--sides", METHOD, "the sides of the class token that take part. Default: both.", SIDES)
]
TokensPerSide = Annotated[
    int | None,
    option("--tokens-per-side", METHOD, "Tokens merged per side and step (gradual orders).", "N", parser=_whole(1)),
]
Weights = Annotated[str | None, choice("--weights", METHOD, "how merged tokens are weighted.", WEIGHTS)]
Hsp = Annotated[str | None, choice("--hsp", METHOD, "hsp weights from the running input, or baked.", MODES)]
Normalize = Annotated[bool, option("--normalize", METHOD, "Divide hsp weights by their sum.")]
StepScale = Annotated[
    float | None, option("--step-scale", METHOD, "p: a token of size s takes s^p times its step.", "P", parser=_number)
]
# None leaves the choice to the preset.
SpanConv = Annotated[
    bool | None,
    option("--span-conv/--plain-conv", METHOD, "Whether the conv sees a merged token as often as it is large."),
]
CalibrationImages = Annotated[
    str | None, option("--calibration", METHOD, "Bake static hsp weights from 64 of these images.", "DATA")
]
FitOn = Annotated[
    str | None,
    option(
        "--fit-on", FIT, "Fit on these images. Default: a part of --data, or drawn pictures that need no data.", "DATA"
    ),
]
FitImages = Annotated[
    int | None,
    option("--fit-images", FIT, "Fit on so many. Default: 256, or 192 to 576 drawn pictures.", "N", parser=_whole(1)),
]
NoCache = Annotated[bool, option("--no-cache", FIT, "Compute the costs anew, and do not keep them.")]
ServedBatch = Annotated[
    int | None,
    option("--served-batch", CHECK, "Images per forward that is timed. Default: 1.", "N", parser=_whole(1)),
]
# For the commands that measure accuracy. `stm plan` can do without labels, and has `Pictures`.
_DATA = (
    "Labelled images: a folder per class, labels.csv or another table, or ImageNet's validation folder; of the Hub:"
    " imagenet-v2, or hf:USER/SET[:SPLIT]; read in place: stream:hf:USER/SET[:SPLIT], FILE.parquet, or 'val-*.tar'."
)
Data = Annotated[str | None, option("--data", CHECK, f"{_DATA} Default: embedded.", "DATA")]
Split = Annotated[
    str | None,
    option("--split", CHECK, "Part of a set, such as val: of --data, else of the images to fit on.", "NAME"),
]
ImageColumn = Annotated[
    str | None,
    option("--image-column", CHECK, "Column of the images in a table or parquet, if not clear.", "NAME"),
]
LabelColumn = Annotated[
    str | None,
    option("--label-column", CHECK, "Column of the labels in a table or parquet, if not clear.", "NAME"),
]
Records = Annotated[
    Path | None, option("--records", CHECK, "Write one line an image to this CSV file, and resume from it.", "FILE")
]
Sweep = Annotated[Path | None, option("--sweep", CHECK, "Plot what stm sweep or compare --json printed.", "FILE")]
Bench = Annotated[Path | None, option("--bench", CHECK, "Show what stm bench --json printed.", "FILE")]
Page = Annotated[
    Path | None, option("--out", OUTPUT, "The HTML file to write. Default: FOLDER-report.html, here.", "FILE")
]
ForcePage = Annotated[bool, option("--force", OUTPUT, "Replace a page that is there.")]
Limit = Annotated[
    int | None, option("--limit", CHECK, "Use only so many images, drawn by the seed.", "N", parser=_whole(1))
]
BatchSize = Annotated[int, option("--batch-size", CHECK, "Images a batch. Default: 32.", "N", parser=_whole(1))]
Seed = Annotated[int, option("--seed", CHECK, "Chooses images. Default: 0.", "N", parser=_whole(0))]
# None tells "not given" from 0: a recipe has a seed of its own, which a given one replaces.
OptionalSeed = Annotated[
    int | None, option("--seed", CHECK, "Chooses images. Default: 0, or the recipe's.", "N", parser=_whole(0))
]
MaxDrop = Annotated[
    float | None,
    option(
        "--max-drop",
        CHECK,
        "Write nothing and exit 3 if top-1 drops by more points. Without a budget: save as much as this allows.",
        "POINTS",
        parser=_points,
    ),
]
MaxKl = Annotated[
    float | None,
    option("--max-kl", CHECK, "Write nothing and exit 3 if int8 changes outputs by more.", "NATS", parser=_number),
]
NoEval = Annotated[bool, option("--no-eval", CHECK, "Do not compare with the dense model.")]
Pictures = Annotated[
    Path | None, option("--data", CHECK, "A folder of images; labels add the drop. Default: embedded.", "DIR")
]
Few = Annotated[
    int | None,
    option(
        "--limit", CHECK, "Use so many images, drawn by the seed. Default: what --seconds allow.", "N", parser=_whole(1)
    ),
]
Seconds = Annotated[
    float | None,
    option("--seconds", CHECK, "Time for the images. Default: 30, or no bound beside --limit.", "S", parser=_number),
]
BatchSizes = Annotated[
    Sequence[int], option("--batch-sizes", TIMING, "Images a forward. Default: 1.", "N,...", parser=_sizes)
]
Timed = Annotated[
    int, option("--batch-size", TIMING, "Images a forward that is timed. Default: 1.", "N", parser=_whole(1))
]
Threads = Annotated[
    int | None,
    option("--threads", TIMING, "Threads on the processor. Default: torch's choice.", "N", parser=_whole(1)),
]
Rounds = Annotated[
    int | None,
    option("--rounds", TIMING, "Times that each is run. Default: for a few seconds.", "N", parser=_whole(1)),
]
Against = Annotated[
    Sequence[str] | None,
    option(
        "--against",
        TIMING,
        "Time a DeiT of the same width beside them: vit (PyTorch), onnxruntime, openvino.",
        "NAME,...",
        parser=_some_of("vit", "onnxruntime", "openvino"),
    ),
]
Optimize = Annotated[bool, option("--optimize", TIMING, "Time what optimize(batch_size) makes of each as well.")]
RandomWeights = Annotated[
    bool, option("--random-weights", SOURCE, "The shape of an alias with fresh weights: no download.")
]
Out = Annotated[
    Path | None, option("--out", OUTPUT, "The folder to write. Default: named after model, method and budget.", "DIR")
]
ExplainOut = Annotated[Path | None, option("--out", OUTPUT, "The folder to write. Default: MODEL-explained.", "DIR")]
TableOut = Annotated[
    Path | None, option("--out", OUTPUT, "A folder for the table (CSV, JSON) and its figure (PNG, SVG).", "DIR")
]
Force = Annotated[bool, option("--force", OUTPUT, "Replace a folder that stm wrote.")]
DryRun = Annotated[bool, option("--dry-run", OUTPUT, "Show the schedule, files and bytes; write nothing.")]
Json = Annotated[bool, option("--json", OUTPUT, "Print one JSON document.")]
Quiet = Annotated[bool, option("--quiet", OUTPUT, "Print one value and no progress.")]
TableFormat = Annotated[
    str | None,
    choice("--format", OUTPUT, "print the table, to be pasted; latex needs booktabs.", ("markdown", "latex")),
]
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
OutFile = Annotated[
    Path | None, option("--out", OUTPUT, "The file or folder to write. Default: named after the model.", "PATH")
]
ForceFile = Annotated[bool, option("--force", OUTPUT, "Replace a file, or a folder that stm wrote.")]
File = Annotated[str | None, option("--file", SOURCE, "The file in a Hub repository.", "NAME")]
Revision = Annotated[str | None, option("--revision", SOURCE, "Branch, tag or commit of a Hub repository.", "REV")]
Token = Annotated[str | None, option("--token", SOURCE, "Hub token. Default: the one you logged in with.", "TOKEN")]
ImageSize = Annotated[
    Any,  # Size | None: typer knows no other unions than those with None
    option(
        "--image-size",
        SOURCE,
        "The input's side, or HEIGHTxWIDTH, if the file does not say it, or to run at another size.",
        "PIXELS",
        parser=_image_size,
    ),
]
ClassToken = Annotated[
    str | None,
    choice(
        "--class-token", SOURCE, "its place, if the file does not say (ViM: middle, VideoMamba: head).", CLASS_TOKENS
    ),
]
DivideOut = Annotated[
    bool | None,
    option("--divide-out/--no-divide-out", SOURCE, "Average the two directions (ViM) or add them (VideoMamba)."),
]
Backbone = Annotated[
    bool, option("--backbone", SOURCE, "Take the backbone alone, for features(): no head, perhaps no class token.")
]
Ema = Annotated[bool, option("--ema", SOURCE, "Take the averaged weights (model_ema) of a checkpoint.")]
WeightsKey = Annotated[
    str | None,
    option("--weights-key", SOURCE, "Where the weights are, if a checkpoint holds several, such as teacher.", "KEY"),
]
Mean = Annotated[
    Sequence[float] | None,
    option("--mean", SOURCE, "Of images in 0 to 1: a number, or one per channel.", "M,...", parser=_list(_number)),
]
Std = Annotated[
    Sequence[float] | None,
    option("--std", SOURCE, "Their standard deviation, as --mean.", "S,...", parser=_list(_number)),
]
CropRatio = Annotated[
    float | None,
    option("--crop-ratio", SOURCE, "Of the crop's side to the resized short side.", "RATIO", parser=_number),
]
Interpolation = Annotated[str | None, choice("--interpolation", SOURCE, "how images are resized.", INTERPOLATIONS)]
Labels = Annotated[
    Path | None,
    option("--labels", SOURCE, "Names of the classes: one per line, JSON, or a CSV with a column of indices.", "FILE"),
]
Device = Annotated[str, option("--device", MACHINE, "auto, cpu, cuda, cuda:1, mps. Default: auto.", "DEVICE")]
Dtype = Annotated[str | None, choice("--dtype", MACHINE, "the type of the matrix weights.", DTYPES)]
Backend = Annotated[str, option("--backend", MACHINE, "A name that stm env lists. Default: auto.", "NAME")]
Workers = Annotated[int | None, option("--workers", MACHINE, "Processes that decode images.", "N", parser=_whole(0))]
