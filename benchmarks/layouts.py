"""Of the layouts in which people could keep a complete ViM: how many load, and whether the rest are named.

    python benchmarks/layouts.py                        # 600 layouts, a table by what they are made of
    python benchmarks/layouts.py --number 5000 --seed 3

A layout is drawn: containers within containers, a prefix of the names, copies of the weights, a head of any name within
the trunk or apart from it, and what trainers leave beside. Half of all names are invented, so that no list of names can
know them. A layout loads if `read` returns its very numbers; it is named if it is refused in a sentence that has the
name of the file and the ViMs or layers that it found.
"""

import argparse
import collections
import itertools
import random
import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stm.checkpoint.infer import official_shapes
from stm.checkpoint.official import read
from stm.config import ModelConfig
from stm.errors import CheckpointError

State = dict[str, Tensor]
MODEL = ModelConfig(image_size=32, d_model=16, depth=2, dt_rank=1, d_state=4)
CLASSES = 5
CONTAINERS = ("model", "state_dict", "model_state_dict", "net", "module", "student", "weights", "params", "checkpoint")
PREFIXES = (
    "module",
    "model",
    "net",
    "backbone",
    "encoder",
    "_orig_mod",
    "_forward_module",
    "vision_mamba",
    "0",
    "model.0",
)
AVERAGED = (
    "model_ema",
    "ema",
    "ema_model",
    "state_dict_ema",
    "ema_state_dict",
    "swa_model",
    "averaged_model",
    "shadow",
)
ENDS = ("loads", "by key", "named")
HEADS = ("head", "fc", "classifier", "head.1", "head.fc", "classifier.0", "mlp_head", "linear")


class Layout(NamedTuple):
    """A document, and how it is made: the kind of each part by its axis."""

    document: Any
    kinds: dict[str, str]


def invented(draw: random.Random) -> str:
    """Return a name that nobody has thought of."""
    syllables = [draw.choice("bcdfghjklmnpqrstvwxz") + draw.choice("aeiouy") for _ in range(draw.randint(2, 5))]
    ending = draw.choice(("", "", str(draw.randrange(100)), "Net", "_v2"))
    return draw.choice(("", "_", "-")).join(syllables) + ending


def name(draw: random.Random, known: tuple[str, ...]) -> tuple[str, str]:
    """Return a name and whether it is known or invented."""
    return (draw.choice(known), "known") if draw.random() < 0.5 else (invented(draw), "invented")


def weights(seed: int) -> State:
    """Return a small complete ViM by official names."""
    make = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=make) for key, shape in official_shapes(MODEL, CLASSES).items()}


def headed(draw: random.Random, state: State, prefix: str) -> tuple[State, dict[str, Tensor], str]:
    """Return the trunk under its prefix with its head, a head of its own dict if it is apart, and the kind."""
    trunk = {prefix + key: value for key, value in state.items() if not key.startswith("head.")}
    stem, kind = name(draw, HEADS)
    own = {f"{stem}.weight": state["head.weight"]}
    if draw.random() < 0.7:
        own[f"{stem}.bias"] = state["head.bias"]
    else:
        kind += ", no bias"
    match draw.choice(("within", "within", "beside", "apart")):
        case "beside" if prefix:
            outer = prefix.rpartition(".")[0].rpartition(".")[0]
            return trunk | {f"{outer}.{key}".strip("."): value for key, value in own.items()}, {}, f"beside, {kind}"
        case "apart":
            return trunk, {key.rpartition(".")[2]: value for key, value in own.items()}, f"a dict apart, {kind}"
    return trunk | {prefix + key: value for key, value in own.items()}, {}, f"within, {kind}"


def wrapped(draw: random.Random, inner: Any, depth: int, kinds: list[str]) -> Any:
    """Put a document into so many containers, with what trainers leave beside it."""
    for _ in range(depth):
        key, kind = name(draw, CONTAINERS)
        kinds.append(kind)
        beside: dict[str, Any] = {
            "epoch": draw.randrange(300),
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3}]},
            "history": [0.1, 0.2],
            "best": {"acc1": 76.1},
        }
        beside = {each: beside[each] for each in draw.sample(sorted(beside), draw.randint(0, 3))}
        as_dict = beside | {key: inner}
        match draw.randrange(10):
            case 0:
                inner = collections.OrderedDict(as_dict)
            case 1 if key.isidentifier():
                inner = argparse.Namespace(**as_dict)
            case 2:
                inner = [inner, 0.5]
            case 3:
                inner = (draw.randrange(9), inner)
            case _:
                inner = as_dict
    return inner


def layout(draw: random.Random, state: State, average: State) -> Layout:
    """Draw a layout that holds a complete ViM."""
    segments = [name(draw, PREFIXES) for _ in range(draw.choice((0, 0, 1, 1, 2, 3, 4)))]
    prefix = "".join(f"{segment}." for segment, _ in segments)
    held, head, head_kind = headed(draw, state, prefix)
    copies = draw.choice((*("none",) * 5, *("a dict of its own", "in one dict") * 2, "a dict of an invented name"))
    match copies:
        case "a dict of its own" | "a dict of an invented name" if not head:
            key = draw.choice(AVERAGED) if copies == "a dict of its own" else invented(draw)
            copy = {prefix + each: value for each, value in average.items()}
            held_in: Any = {draw.choice(CONTAINERS): held, key: {"module": copy} if draw.random() < 0.3 else copy}
        case "in one dict" if not head and prefix:
            held_in = held | {f"{draw.choice(AVERAGED)}.{each}": value for each, value in average.items()}
        case _:
            copies = "none"
            held_in = {invented(draw): held, draw.choice((*HEADS[:3], invented(draw))): head} if head else held
    if (
        draw.random() < 0.3
        and isinstance(held_in, dict)
        and not any(isinstance(each, dict) for each in held_in.values())
    ):
        held_in = held_in | {f"{prefix}total_ops": torch.zeros(1), "criterion.weight": torch.ones(CLASSES)}
    around: list[str] = []
    document = wrapped(draw, held_in, draw.choice((0, 1, 1, 2, 3, 4)), around)
    kinds = {
        "containers": f"{len(around)}, {'some invented' if 'invented' in around else 'known' if around else 'none'}",
        "prefix": f"{len(segments)} segments, "
        + ("some invented" if "invented" in [kind for _, kind in segments] else "known" if segments else "none"),
        "copies": copies,
        "head": head_kind,
    }
    return Layout(document, kinds)


def outcome(path: Path, state: State) -> str:
    """Return "loads", "by key" if it loads under the key that the hint gives, "named", or what went wrong otherwise."""
    end = "loads"
    try:
        tensors = read(path, image_size=MODEL.image_size).tensors
    except CheckpointError as error:
        if str(path) not in error.message or not re.search(r"'|\(", error.message):
            return f"unnamed: {error}"
        key = re.fullmatch(r"name one: --weights-key (.+)", error.hint or "")
        if key is None:
            return "named"
        end, tensors = "by key", read(path, image_size=MODEL.image_size, weights_key=key[1]).tensors
    right = all(torch.equal(tensors[key], state[key]) for key in ("norm_f.weight", "head.weight", "pos_embed"))
    return end if right else "loads other numbers"


def measure(number: int, seed: int) -> list[tuple[dict[str, str], str]]:
    """Return the kinds and the outcome of each drawn layout."""
    draw, state, average = random.Random(seed), weights(1), weights(2)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(number):
            made = layout(draw, state, average)
            path = Path(folder) / "x_midclstok.pth"
            torch.save(made.document, path)
            rows.append((made.kinds, outcome(path, state)))
    return rows


def table(rows: list[tuple[dict[str, str], str]]) -> str:
    """Return the counts by each kind of each axis, and of all."""
    lines = [f"| | layouts | {' | '.join(ENDS)} | else |", "| --- " + "| ---: " * (len(ENDS) + 2) + "|"]
    for axis in rows[0][0]:
        for kind in sorted({kinds[axis] for kinds, _ in rows}):
            lines.append(_row(f"{axis}: {kind}", [end for kinds, end in rows if kinds[axis] == kind]))
    lines.append(_row("all", [end for _, end in rows]))
    ends = collections.Counter(end for _, end in rows)
    rest = sum(ends[each] for each in ENDS) == len(rows)
    return "\n".join(lines) + (
        f"\n\nOf {len(rows)} layouts that hold a complete ViM, {ends['loads']} load ({ends['loads'] / len(rows):.1%});"
        f" {ends['by key']} hold two under names that do not tell which, are named, and load by --weights-key;"
        f" {'all' if rest else 'not all'} of the rest ({len(rows) - ends['loads'] - ends['by key']}) are named."
    )


def _row(what: str, ends: list[str]) -> str:
    counts = [ends.count(each) for each in ENDS]
    return f"| {what} | {' | '.join(map(str, (len(ends), *counts, len(ends) - sum(counts))))} |"


def main() -> None:
    """Print the table, and whatever is neither loaded nor named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = measure(options.number, options.seed)
    print(table(rows))
    for kinds, end in itertools.islice((row for row in rows if row[1] not in ENDS), 20):
        print(kinds, end)


if __name__ == "__main__":
    main()
