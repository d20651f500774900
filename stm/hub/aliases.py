"""Short names: official checkpoints (READMEs of hustvl/Vim and wangf3014/Mamba-Reg), and sample sets on the Hub."""

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
        image_size, patch, stride: of its input, in pixels.
        tokens: that enter the first block, class tokens included.
        license: SPDX, from the header of the repo's card; the card's text may say more. None: nothing is known.
        depth: the number of blocks.
        class_tokens, neck: as in `ModelConfig`.
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
    license: str | None = "apache-2.0"
    depth: int = 24
    class_tokens: int = 1
    neck: int | None = None


def _mamba_r(size: str, top1: float, parameters: int, d_model: int, neck: int, depth: int = 24, n: int = 12) -> Alias:
    file = f"mambar_{size}_patch16_224.pth"
    return Alias("Wangf3014/Mamba-Reg", file, top1, parameters, d_model, 196 + n, 16, 224, 16, None, depth, n, neck)


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
