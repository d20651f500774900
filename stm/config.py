"""The types behind `config.json`, in which a model folder describes itself. stm/config_file.py writes and reads it.

Every value is checked when its dataclass is made, so no part of the code checks a config again. The config holds the
integers of a model, the schedule among them; the floats that it computes with are in `model.safetensors`. Nothing here
is a path, a clock time or a speed, so that two runs write the same bytes.
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from stm.codec import LATER
from stm.errors import StmError, check_choice, check_within
from stm.merging.schedule import Fixed, Schedule
from stm.recipe import Recipe

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INT8 = "int8"
DTYPES = ("float32", "bfloat16", "float16", INT8)
CLASS_TOKENS = ("middle", "head")
INTERPOLATIONS = ("bicubic", "bilinear", "nearest")
WEIGHTS = ("prune", "sum", "mean", "size", "hsp")
MODES = ("dynamic", "static")
# Nothing in the weights bounds the first two, and a hostile file must not take all memory.
LARGEST_SIDE = 8192  # pixels; an image of that side takes 800 MB as a model's input
LARGEST_RESIZE = 10  # times the crop
MOST_CLASS_TOKENS = 256
REWRITE_HINT = "copy or download the folder again, or write it again with stm compress"

Size = int | tuple[int, int]  # pixels: the side of a square, or height and width of what is none


def sides(size: Size) -> tuple[int, int]:
    """Return height and width."""
    return (size, size) if isinstance(size, int) else size


def as_size(height: int, width: int) -> Size:
    """Return height and width as every `Size` is written: a square as one number."""
    return height if height == width else (height, width)


def in_pixels(size: Size) -> str:
    """Return a size in words: `224 x 448`."""
    return " x ".join(map(str, sides(size)))


def _check_size(name: str, size: Size) -> None:
    if min(sides(size)) < 1:
        raise ValueError(f"{name} is {size}, expected at least 1")
    if size != as_size(*sides(size)):
        raise ValueError(f"{name} is {size}, expected {sides(size)[0]} for a square")


def spread(patches: int, class_tokens: int) -> tuple[int, ...]:
    """Return the positions of class tokens that are spread among patches; of one, the middle."""
    run = patches // (class_tokens + 1)
    return tuple(range(run, (run + 1) * class_tokens, run + 1))


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a ViM (hustvl/Vim, bimamba v2). The letters are those of docs/design.md.

    Args:
        image_size: side of a square input, or height and width, in pixels.
        patch: side of a patch, in pixels.
        stride: distance between two patches, in pixels; patches overlap if it is smaller than `patch`.
        in_chans: channels of an image.
        d_model: D, the residual width.
        depth: number of blocks.
        d_state: N, the state size of the scan.
        dt_rank: R, the rank of Delta's projection.
        expand: the inner width E is `expand` * D.
        d_conv: W, the width of the causal convolution.
        class_token: "middle" (at M // 2 of M patches, as in the official models) or "head" (at 0).
        class_tokens: n, the number of class tokens; 0 of the backbone of a model for dense prediction. Several are
            spread: they cut the patches into n + 1 runs of equal length, apart from what is left over at the end
            (wangf3014/Mamba-Reg, `get_cls_idx`).
        scan_norm: whether a LayerNorm stands between the directions' average and the gate (insitro/FastVim's Vim-B).
        neck: the width to which each class token is reduced before the classifier reads them all; None: D, unreduced.
        divide_out: whether the two directions are averaged (official) or added.
        norm_eps: added to the mean square in every RMSNorm.

    Raises:
        ValueError: a value that no ViM can have.
    """

    image_size: Size = 224
    patch: int = 16
    stride: int = 16
    in_chans: int = 3
    d_model: int
    depth: int
    d_state: int = 16
    dt_rank: int
    expand: int = 2
    d_conv: int = 4
    class_token: str = "middle"
    divide_out: bool = True
    norm_eps: float = 1e-5
    class_tokens: int = field(default=1, metadata=LATER)
    neck: int | None = field(default=None, metadata=LATER)
    scan_norm: bool = field(default=False, metadata=LATER)

    def __post_init__(self) -> None:
        _check_size("image_size", self.image_size)
        for name in ("patch", "stride", "in_chans", "d_model", "depth", "d_state", "dt_rank", "expand", "d_conv"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.class_tokens < 0:
            raise ValueError(f"class_tokens is {self.class_tokens}, expected at least 0")
        if max(sides(self.image_size)) > LARGEST_SIDE:
            raise ValueError(f"image_size is {self.image_size}, expected at most {LARGEST_SIDE}")
        if self.patch > min(sides(self.image_size)):
            raise ValueError(f"patch is {self.patch}, expected at most the image_size {self.image_size}")
        if not (math.isfinite(self.norm_eps) and self.norm_eps > 0):
            raise ValueError(f"norm_eps is {self.norm_eps}, expected a small positive number")
        check_choice("class_token", self.class_token, CLASS_TOKENS, ValueError)
        most = min(self.patches, MOST_CLASS_TOKENS) if self.class_token == "middle" else 1
        if self.class_tokens > most:
            raise ValueError(
                f"class_tokens is {self.class_tokens}, expected at most {most} among {self.patches} patches with"
                f" class_token {self.class_token!r}"
            )
        if self.neck is not None and (self.neck < 1 or self.class_tokens < 2):
            raise ValueError(f"neck is {self.neck} with {self.class_tokens} class tokens, expected null, or several")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """C, H and W of an image."""
        return (self.in_chans, *sides(self.image_size))

    @property
    def grid(self) -> tuple[int, int]:
        """The rows and the columns of patches in an image."""
        rows, columns = ((side - self.patch) // self.stride + 1 for side in sides(self.image_size))
        return rows, columns

    @property
    def patches(self) -> int:
        """M, the number of patches."""
        return math.prod(self.grid)

    @property
    def tokens(self) -> int:
        """L, the number of patches and class tokens."""
        return self.patches + self.class_tokens

    @property
    def cls(self) -> Fixed:
        """The position of the class token in the sequence that enters block 0, or the positions of several or none."""
        if self.class_tokens != 1:
            return spread(self.patches, self.class_tokens)
        return 0 if self.class_token == "head" else spread(self.patches, 1)[0]

    @property
    def d_head(self) -> int:
        """The width of what the classifier reads: the class tokens beside each other."""
        return self.class_tokens * (self.d_model if self.neck is None else self.neck)

    @property
    def d_inner(self) -> int:
        """E, the inner width."""
        return self.expand * self.d_model


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a photograph becomes the model's input: resize the short side, center crop, scale to 0..1, normalise.

    If the crop is no square, an image is resized until it just covers a box, without a change of its proportions.

    Args:
        resize: the short side after resizing, or height and width of that box, in pixels.
        crop: of the center: its side, or height and width, in pixels.
        interpolation: "bicubic" or "bilinear" (antialiased), "nearest", or "none": the image must have the crop's size.
        mean, std: one value per channel.
    """

    resize: Size = 256
    crop: Size = 224
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        check_choice("interpolation", self.interpolation, (*INTERPOLATIONS, "none"), ValueError)
        for name, size in (("resize", self.resize), ("crop", self.crop)):
            _check_size(name, size)
        pairs = list(zip(sides(self.crop), sides(self.resize), strict=True))
        if any(crop > resize for crop, resize in pairs):
            raise ValueError(f"crop is {self.crop}, expected 1 to the resized short side {self.resize}")
        if any(resize > LARGEST_RESIZE * crop for crop, resize in pairs):
            raise ValueError(f"resize is {self.resize}, expected at most {LARGEST_RESIZE} times the crop {self.crop}")
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise ValueError(f"mean {self.mean} and std {self.std}: expected as many of each, every std above 0")

    @classmethod
    def official(cls, image_size: Size, ratio: float = 0.875) -> "Preprocess":
        """Return the preprocessing of hustvl/Vim for an image size, or that with another ratio of crop to image.

        Short side int(size / 0.875), bicubic, center crop, ImageNet mean and std. Source: hustvl/Vim, vim/datasets.py.
        """
        return cls(resize=as_size(*(int(side / ratio) for side in sides(image_size))), crop=image_size)

    def at(self, image_size: Size) -> "Preprocess":
        """Return the same preprocessing for another size: what is resized keeps its ratio to the crop."""
        ratios = zip(sides(image_size), sides(self.resize), sides(self.crop), strict=True)
        return replace(self, resize=as_size(*(side * old // crop for side, old, crop in ratios)), crop=image_size)


@dataclass(frozen=True, kw_only=True)
class Protection:
    """How a merge weighs tokens, and how the blocks after it treat merged tokens.

    The size of a token is the number of original tokens merged into it.

    Args:
        weights: the rule: prune, sum, mean, size or hsp (the paper's hidden-state protection).
        mode: "static" (baked constants) or "dynamic" (computed from the running input; hsp only).
        normalized: whether hsp's weights are divided by their sum.
        step_scale: p. A token of size s takes s^p times its Delta in every later block, since it stands for s tokens of
            elapsed time.
        span_conv: whether the causal convolution reads a merged token as many times in a row as its size.
    """

    weights: str = "size"
    mode: str = "static"
    normalized: bool = False
    step_scale: float = 0.5
    span_conv: bool = True

    def __post_init__(self) -> None:
        check_choice("weights", self.weights, WEIGHTS, ValueError)
        check_choice("mode", self.mode, MODES, ValueError)
        if not (math.isfinite(self.step_scale) and 0 <= self.step_scale <= 4):
            raise ValueError(f"step_scale is {self.step_scale}, expected a number from 0 to 4")
        if self.weights != "hsp" and (self.mode == "dynamic" or self.normalized):
            raise ValueError(
                f"mode {self.mode!r}, normalized {self.normalized}: only hsp weights can be dynamic or normalized"
            )


@dataclass(frozen=True, kw_only=True)
class Source:
    """The origin of the weights.

    Args:
        repo: the Hub repository, OWNER/NAME.
        file: the base name of the file, never a path, which would tell where it lay. A repository's file in a folder
            has its whole name in `extra.path`.
        revision: the resolved commit, never a branch.
        sha256: the hash of the file.
        license: as the header of the repository's model card states it.
    """

    repo: str | None = None
    file: str | None = None
    revision: str | None = None
    sha256: str | None = None
    license: str | None = None

    def __post_init__(self) -> None:
        if self.file is not None and self.file != PurePosixPath(self.file).name:
            raise ValueError(f"file is {self.file!r}, expected a name without a folder")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One evaluation. Accuracies, intervals and drops are fractions.

    A number that was not measured is null, and `reasons` says why, by the name of its field. A backbone has no other
    than `feature_change`: see `stm.measure.judge.feature_change`.
    """

    data: str
    n: int
    failed: int = 0
    top1: float | None = None
    top1_ci: tuple[float, float] | None = None
    top5: float | None = None
    top5_ci: tuple[float, float] | None = None
    agreement: float | None = None
    kl: float | None = None
    dense_top1: float | None = None
    drop: float | None = None
    drop_ci: tuple[float, float] | None = None
    mcnemar_p: float | None = None
    feature_change: float | None = field(default=None, metadata=LATER)
    seed: int = 0
    reasons: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_within(self, 1, math.inf, "n")
        check_within(self, 0, math.inf, "failed", "seed", "kl", "feature_change")
        check_within(self, 0, 1, "top1", "top1_ci", "top5", "top5_ci", "agreement", "dense_top1", "mcnemar_p")
        check_within(self, -1, 1, "drop", "drop_ci")  # a compressed model may be better


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """The hash and the size of a file of the folder, as they were written."""

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole description of a model. A model that was never saved has no `files`.

    Args:
        num_classes: 0 of a backbone, which has no head.
        preprocessing: how a photograph becomes an input.
        label_names: one name per class, if known.
        dtype: of the weights of the matrix products; everything else is float32.
        protection: null only if the schedule has no steps.
        recipe: null if `stm.compress` did not make the model, or if its weights have changed since.
        stm_version: of the program that wrote the folder.
        extra: everything else worth keeping; the only place where unknown keys are allowed.
        rounding: of an int8 model: measured against the same model in float32.

    Raises:
        ValueError: two parts that contradict each other.
    """

    model: ModelConfig
    num_classes: int
    schedule: Schedule
    preprocessing: Preprocess = Preprocess()
    label_names: tuple[str, ...] | None = None
    dtype: str = "float32"
    protection: Protection | None = None
    recipe: Recipe | None = None
    source: Source = Source()
    measured: tuple[Measured, ...] = ()
    files: dict[str, FileInfo] = field(default_factory=dict)
    stm_version: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    rounding: Measured | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, DTYPES, ValueError)
        if self.num_classes < 0:
            raise ValueError(f"num_classes is {self.num_classes}, expected at least 0")
        if self.num_classes and not self.model.class_tokens:
            raise ValueError(f"num_classes is {self.num_classes} without a class token, expected 0")
        if self.label_names is not None and len(self.label_names) != self.num_classes:
            raise ValueError(
                f"{len(self.label_names)} label_names, expected one for each of the {self.num_classes} classes"
            )
        if (self.schedule.tokens, self.schedule.cls) != (self.model.tokens, self.model.cls):
            raise ValueError(
                f"the schedule is for {self.schedule.tokens} tokens with the class token at {self.schedule.cls}, "
                f"the model has {self.model.tokens} with it at {self.model.cls}"
            )
        self.schedule.check_depth(self.model.depth)
        if self.rounding is not None and self.dtype != INT8:
            raise ValueError(f"rounding is given, expected null: the dtype is {self.dtype}")
        # The reverse is no contradiction: a budget of 0 has a protection and no steps.
        if self.schedule.steps and self.protection is None:
            raise ValueError("the schedule merges, but protection is null")
        if self.preprocessing.crop != self.model.image_size:
            raise ValueError(
                f"preprocessing.crop is {self.preprocessing.crop}, expected the image_size {self.model.image_size}"
            )
        if len(self.preprocessing.mean) != self.model.in_chans:
            raise ValueError(
                f"preprocessing.mean has {len(self.preprocessing.mean)} values, expected {self.model.in_chans}"
            )

    def check_head(self) -> None:
        """Raise StmError if the model is a backbone without a head, which gives no logits."""
        if not self.num_classes:
            raise StmError(
                "the model is a backbone without a head, and has no logits",
                "stm eval measures how far merging moves its features, stm bench times it, and model.features(images)"
                " gives them",
            )

    def extra_texts(self, key: str) -> tuple[str, ...]:
        """Return the texts of a list in `extra`: `notes`, the assumptions made when the source was read, or `datasets`.

        `extra` may hold anything, also in a file that someone else wrote, so other values are passed over.
        """
        value = self.extra.get(key)
        return tuple(text for text in value if isinstance(text, str)) if isinstance(value, list) else ()


def dense_schedule(model: ModelConfig) -> Schedule:
    """Return the schedule of a model that merges nothing."""
    return Schedule(model.tokens, model.cls)
