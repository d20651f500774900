"""Train the embedded model, vim-digits, measure it, and write it with its sample set to stm/assets/vim-digits.

    python tools/train_digits.py    # the shipped model: same seed, same machine and threads, same bytes

A ViM of the real geometry (14 x 14 patches and a class token, 24 blocks, N = 16) but with D = 32. It learns the UCI
handwritten digits that scikit-learn ships: 8 x 8 pixels, upscaled, turned and placed at random on a canvas of 28 x 28.
A third of the digits is held out: training never sees them, and they choose nothing. Drawn once, they are the sample
set.

Data: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998, CC BY
4.0.
"""

import argparse
import copy
import dataclasses
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor

from stm.config import Config, ModelConfig, Preprocess, Source, dense_schedule
from stm.data.open import embedded_digits
from stm.measure.evaluate import assess
from stm.model.initialize import initialize
from stm.model.vim import ViM

SIDE, PATCH = 28, 2
DEGREES, SCALES = 25.0, (0.6, 0.85)  # of the turn, either way; of the canvas that the 8 x 8 image covers
MEAN, STD = 0.5, 0.5
FOLDER = Path(__file__).resolve().parents[1] / "stm" / "assets" / "vim-digits"
UCI = "UCI Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak, 1998), CC BY 4.0"


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    digits, labels = load()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(options.seed))
    held_out, training = order[: len(order) // 3], order[len(order) // 3 :]

    model = initialize(ViM(config(options)), options.seed)
    averaged = train(model, digits[training], labels[training], options)
    images = draw(digits[held_out], torch.Generator().manual_seed(options.seed + 1))
    samples = options.out.with_suffix(".samples.safetensors")
    save_file({"images": images, "labels": labels[held_out]}, samples)

    measured = assess(averaged, embedded_digits(samples)).recorded()
    averaged.config = dataclasses.replace(averaged.config, measured=(measured,))
    averaged.save_pretrained(options.out, force=True)
    say(f"wrote {options.out}: top-1 {measured.top1} on {measured.n} held-out digits")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the embedded model, vim-digits.")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=FOLDER)
    return parser.parse_args()


def load() -> tuple[Tensor, Tensor]:
    """Return the digits (n, 8, 8) from 0 to 1, and their labels (n,)."""
    bunch = load_digits()
    return torch.tensor(bunch.images, dtype=torch.float32) / 16, torch.tensor(bunch.target)


def draw(digits: Tensor, g: torch.Generator) -> Tensor:
    """Return each digit (n, 8, 8) upscaled, turned and placed at random on a canvas: (n, 28, 28), uint8."""
    n = len(digits)
    angle = (2 * torch.rand(n, generator=g) - 1) * math.radians(DEGREES)
    scale = SCALES[0] + (SCALES[1] - SCALES[0]) * torch.rand(n, generator=g)
    shift = (2 * torch.rand(n, 2, generator=g) - 1) * (1 - scale[:, None])  # the 8 x 8 image stays on the canvas
    # The inverse of turning, scaling and shifting: affine_grid maps positions on the canvas back to the image.
    turn = torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()], -1).view(n, 2, 2) / scale[:, None, None]
    grid = F.affine_grid(torch.cat([turn, -turn @ shift[..., None]], -1), [n, 1, SIDE, SIDE], align_corners=False)
    canvas = F.grid_sample(digits[:, None], grid, mode="bicubic", align_corners=False)
    return (canvas[:, 0].clamp(0, 1) * 255).round().to(torch.uint8)


def normalised(images: Tensor) -> Tensor:
    """Return images (n, 28, 28), uint8, as the model takes them: (n, 1, 28, 28)."""
    return (images[:, None].float() / 255 - MEAN) / STD


def config(options: argparse.Namespace) -> Config:
    shape = ModelConfig(
        image_size=SIDE, patch=PATCH, stride=PATCH, in_chans=1, d_model=32, depth=24, d_state=16, dt_rank=2
    )
    settings = {key: getattr(options, key) for key in ("epochs", "batch_size", "lr", "seed")}
    return Config(
        model=shape,
        num_classes=10,
        schedule=dense_schedule(shape),
        preprocessing=Preprocess(resize=SIDE, crop=SIDE, mean=(MEAN,), std=(STD,)),
        label_names=tuple(map(str, range(10))),
        source=Source(file="vim-digits", license="apache-2.0"),
        extra={"training": {"data": UCI, "tool": "tools/train_digits.py", **settings}},
    )


def train(model: ViM, digits: Tensor, labels: Tensor, options: argparse.Namespace) -> ViM:
    """Train, and return the average of the weights along the way."""
    # The number of epochs is fixed beforehand: stopping by the held-out digits would choose by them.
    # No weight decay for vectors, embeddings (first axis 1) and parameters stacked by direction (first axis 2).
    matrices = [p for p in model.parameters() if p.dim() > 1 and p.shape[0] > 2]
    decayed = {id(p) for p in matrices}
    groups = [
        {"params": matrices, "weight_decay": 0.05},
        {"params": [p for p in model.parameters() if id(p) not in decayed], "weight_decay": 0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.lr)
    steps = options.epochs * (len(labels) // options.batch_size)
    warm = steps // 20
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            (step + 1) / (warm + 1), 0.5 * (1 + math.cos(math.pi * max(0, step - warm) / max(1, steps - warm)))
        ),
    )
    averaged, g = copy.deepcopy(model), torch.Generator().manual_seed(options.seed + 2)
    start = time.perf_counter()
    for epoch in range(options.epochs):
        order = torch.randperm(len(labels), generator=g)
        total = 0.0
        for batch in order[: len(order) // options.batch_size * options.batch_size].split(options.batch_size):
            logits = model(normalised(draw(digits[batch], g)))
            loss = F.cross_entropy(logits, labels[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for mean, new in zip(averaged.parameters(), model.parameters(), strict=True):
                    mean.lerp_(new, 0.01)
            total += loss.item()
        mean_loss, seconds = total / (len(order) // options.batch_size), time.perf_counter() - start
        say(f"epoch {epoch + 1}/{options.epochs}  loss {mean_loss:.3f}  {seconds:.0f} s")
    return averaged.requires_grad_(False)


def say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    main()
