"""The official ViM checkpoints by short names. hustvl/Vim, README, "Model Weights"."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Alias:
    """An official checkpoint on the Hub.

    Args:
        repo, file: where it is.
        top1: its accuracy on ImageNet-1k's validation set by its authors, a fraction.
        parameters: how many there are.
        image_size, patch, stride: of its input, in pixels.
        tokens: that enter the first block, class token included.
        license: SPDX, by the repo's card.
    """

    repo: str
    file: str
    top1: float
    parameters: int
    tokens: int
    stride: int
    image_size: int = 224
    patch: int = 16
    license: str = "apache-2.0"


ALIASES = {
    "vim-ti": Alias("hustvl/Vim-tiny-midclstok", "vim_t_midclstok_76p1acc.pth", 0.761, 7_148_008, 197, 16),
    "vim-ti-plus": Alias("hustvl/Vim-tiny-midclstok", "vim_t_midclstok_ft_78p3acc.pth", 0.783, 7_250_344, 730, 8),
    "vim-s": Alias("hustvl/Vim-small-midclstok", "vim_s_midclstok_80p5acc.pth", 0.805, 25_796_584, 197, 16),
    "vim-s-plus": Alias("hustvl/Vim-small-midclstok", "vim_s_midclstok_ft_81p6acc.pth", 0.816, 26_001_256, 730, 8),
    "vim-b": Alias("hustvl/Vim-base-midclstok", "vim_b_midclstok_81p9acc.pth", 0.819, 97_598_440, 197, 16),
}
