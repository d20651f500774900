"""Short names: official checkpoints (READMEs of hustvl/Vim and wangf3014/Mamba-Reg; OpenGVLab/VideoMamba,
videomamba/image_sm/MODEL_ZOO.md), and sample sets on the Hub."""

import re
from dataclasses import dataclass

ENDINGS = (".pth", ".pt", ".bin", ".safetensors", ".ckpt", ".pth.tar", ".pt.tar")  # of files of weights


@dataclass(frozen=True)
class Alias:
    """An official checkpoint on the Hub.

    Args:
        repo, file: its address.
        top1: its accuracy on ImageNet-1k's validation set as its authors report it, a fraction.
        parameters: their number.
        d_model: D, the residual width; all models have a state of 16.
        tokens: that enter the first block, class tokens included.
        image_size, patch, stride: of its input, in pixels.
        depth: the number of blocks.
        class_token, divide_out, class_tokens, neck: as in `stm.config.ModelConfig`.
        license: SPDX, from the header of the repo's card; the card's text may say more. None: nothing is known.
    """

    repo: str
    file: str
    top1: float
    parameters: int
    d_model: int
    tokens: int
    stride: int
    image_size: int = 224
    patch: int = 16
    depth: int = 24
    class_token: str = "middle"
    divide_out: bool = True
    class_tokens: int = 1
    neck: int | None = None
    license: str | None = "apache-2.0"


def _mamba_r(size: str, top1: float, parameters: int, d_model: int, neck: int, depth: int = 24, n: int = 12) -> Alias:
    """Return a Mamba-R: n class tokens spread among the patches, each reduced to `neck` before the head."""
    return Alias(
        "Wangf3014/Mamba-Reg",
        f"mambar_{size}_patch16_224.pth",
        top1,
        parameters,
        d_model,
        196 + n,
        16,
        depth=depth,
        class_tokens=n,
        neck=neck,
        license=None,
    )


def _videomamba(size: str, image_size: int, top1: float, parameters: int, d_model: int, depth: int = 24) -> Alias:
    """Return an image model of VideoMamba: the class token at the head, the directions added, patches edge to edge."""
    # Fine-tuned at 448 pixels after 224, and at 576 after those: the file's name tells the whole way.
    sizes = "to".join(str(each) for each in (224, 448, 576) if each <= image_size)
    return Alias(
        "OpenGVLab/VideoMamba",
        f"videomamba_{size}16_in1k_res{sizes}.pth",
        top1,
        parameters,
        d_model,
        (image_size // 16) ** 2 + 1,
        16,
        image_size=image_size,
        depth=depth,
        class_token="head",
        divide_out=False,
    )


# Written down here, so that listing the models needs no network.
ALIASES = {
    "vim-ti": Alias("hustvl/Vim-tiny-midclstok", "vim_t_midclstok_76p1acc.pth", 0.761, 7_148_008, 192, 197, 16),
    "vim-ti-plus": Alias("hustvl/Vim-tiny-midclstok", "vim_t_midclstok_ft_78p3acc.pth", 0.783, 7_250_344, 192, 730, 8),
    "vim-s": Alias("hustvl/Vim-small-midclstok", "vim_s_midclstok_80p5acc.pth", 0.805, 25_796_584, 384, 197, 16),
    "vim-s-plus": Alias("hustvl/Vim-small-midclstok", "vim_s_midclstok_ft_81p6acc.pth", 0.816, 26_001_256, 384, 730, 8),
    "vim-b": Alias("hustvl/Vim-base-midclstok", "vim_b_midclstok_81p9acc.pth", 0.819, 97_598_440, 768, 197, 16),
    "mambar-s": _mamba_r("small", 0.814, 27_801_064, 384, 192),
    "mambar-b": _mamba_r("base", 0.830, 99_301_096, 768, 192),
    "mambar-l": _mamba_r("large", 0.836, 341_222_376, 1024, 128, 48, 16),
    "videomamba-ti": _videomamba("t", 224, 0.769, 7_148_008, 192),
    "videomamba-ti-448": _videomamba("t", 448, 0.793, 7_260_904, 192),
    "videomamba-ti-576": _videomamba("t", 576, 0.796, 7_359_208, 192),
    "videomamba-s": _videomamba("s", 224, 0.812, 25_796_584, 384),
    "videomamba-s-448": _videomamba("s", 448, 0.832, 26_022_376, 384),
    "videomamba-s-576": _videomamba("s", 576, 0.835, 26_218_984, 384),
    "videomamba-m": _videomamba("m", 224, 0.828, 74_217_448, 576, depth=32),
    "videomamba-m-448": _videomamba("m", 448, 0.838, 74_556_136, 576, depth=32),
    "videomamba-m-576": _videomamba("m", 576, 0.840, 74_851_048, 576, depth=32),
    "videomamba-b": _videomamba("b", 224, 0.827, 97_598_440, 768),
}


@dataclass(frozen=True)
class HubArchive:
    """A sample set on the Hub: one archive of a dataset's repo, with one folder per class.

    Args:
        repo, file: its address.
        split: the name of this archive among those of the set.
        license: SPDX, from the repo's card.
    """

    repo: str
    file: str
    split: str
    license: str


# Recht et al., "Do ImageNet Classifiers Generalize to ImageNet?" (2019): 10,000 images, collected in the same way as
# ImageNet's, but apart from them. The names of the folders are class indices.
ARCHIVES = {
    "imagenet-v2": HubArchive("vaishaal/ImageNetV2", "imagenetv2-matched-frequency.tar.gz", "matched-frequency", "mit"),
}


@dataclass(frozen=True)
class SetName:
    """The parts of a sample set's name on the Hub. `alias` is None if the name is not an alias."""

    repo: str
    revision: str | None
    split: str | None
    alias: str | None = None


def is_set_name(name: str) -> bool:
    """Return whether a name claims to be that of a sample set on the Hub. `read_set_name` may still refuse it."""
    return name.startswith("hf:") or name.partition("@")[0] in ARCHIVES


def read_set_name(name: str) -> SetName | None:
    """Return the parts of `hf:USER/SET[@REVISION][:SPLIT]` or `ALIAS[@REVISION]`; None for any other name."""
    alias, _, revision = name.partition("@")
    if alias in ARCHIVES:
        return SetName(ARCHIVES[alias].repo, revision or None, ARCHIVES[alias].split, alias)
    # A revision may hold slashes, as `refs/convert/parquet` does, but no colon: git allows none in a name.
    parts = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:@([^:]+))?(?::([\w.-]+))?", name)
    return SetName(parts[1], parts[2], parts[3]) if parts else None
