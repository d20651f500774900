"""Tune what MTR's paper leaves open (blocks, group sizes, features) in its favour.

    python benchmarks/tune_mtr.py vim-s --data calibration_images/ --saving 0.2 --limit 256

The measure is KL to the dense model on calibration images, all settings at one saving.
"""

import argparse
from itertools import product
from pathlib import Path

import torch

from stm.data.open import open_samples
from stm.data.sets import iterate
from stm.loading import open_model
from stm.measure.equal_cost import nearest
from stm.measure.evaluate import forward
from stm.measure.records import kl_divergence
from stm.options import ModelOptions
from stm.peers.mtr import FEATURES, MTR
from stm.peers.peer import every, scaled

SHARES = (1.0, 0.5, 0.25, 0.1)


def places_of(depth: int) -> dict[str, tuple[int, ...]]:
    """Return the choices of blocks after which MTR may act: those of the other methods, and one block alone."""
    named = {
        "thirds": (4, 9, 14),
        "late": (10, 15, 20),
        "every fourth": (1, 5, 9, 13, 17, 21),
        "two": (7, 15),
        "one": (11,),
    }
    return {"all": every(1, 1, depth), "every second": every(2, 2, depth)} | {
        name: scaled(at, depth) for name, at in named.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, help="a folder of images, labelled or not")
    parser.add_argument("--saving", type=float, default=0.2, help="the honest FLOPs saving")
    parser.add_argument("--limit", type=int, default=192)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    dense = open_model(options.model, ModelOptions())
    samples = open_samples(options.data, config=dense.config, limit=options.limit, seed=options.seed, need_labels=False)
    batches = [
        batch.images.to(dense.cls_token.device) for batch in iterate(samples, dense.config.preprocessing, batch_size=32)
    ]
    rows = []
    with torch.inference_mode():
        reference = [forward(dense, images) for images in batches]
        shape = dense.config.model
        for (name, places), share, feature in product(places_of(shape.depth).items(), SHARES, FEATURES):
            plans = (MTR(shape, removals, share, feature) for removals in MTR.budgets(shape, places))
            solved = nearest(dense.config, plans, options.saving)
            if solved is not None:
                small = dense.with_plan(solved.plan)
                kl = torch.cat([kl_divergence(a, forward(small, b)) for a, b in zip(reference, batches, strict=True)])
                rows.append(
                    (
                        kl.mean().item(),
                        f"{name}, target share {share:g}, {feature}, saving {solved.flops.honest_saving:.1%}",
                    )
                )
                print(f"{rows[-1][0]:.4f}  {rows[-1][1]}", flush=True)
    print(f"\nKL to dense on {sum(map(len, batches))} images of {samples.name}, best first")
    for kl_mean, setting in sorted(rows):
        print(f"{kl_mean:.4f}  {setting}")


if __name__ == "__main__":
    main()
