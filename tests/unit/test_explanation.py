"""The folder of an explanation: its figures and the data behind each, for any place of the class token and any plan."""

import csv
import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import stm
from stm import backends
from stm.config import Config, ModelConfig, Preprocess, dense_schedule
from stm.data.fit_images import pictures
from stm.errors import StmError
from stm.explain import folder as explanation
from stm.explain.costs import CostMap, cost_map, rows_of
from stm.explain.figures import Maps
from stm.explain.folder import Explanation, file_names, measure
from stm.explain.measurements import Loss
from stm.fitting import fit
from stm.merging.groups import Formed, formed, runs
from stm.model.initialize import initialize
from stm.model.vim import ViM
from stm.plots import style as plots

pytest.importorskip("matplotlib", reason="figures need matplotlib, the extra plots")
PREP = Preprocess(resize=6, crop=6, mean=(0.5,), std=(0.5,))


def compressed(class_token: str = "middle") -> ViM:
    shape = ModelConfig(
        image_size=6, patch=2, stride=2, in_chans=1, d_model=4, depth=4, d_state=3, dt_rank=2, class_token=class_token
    )
    dense = ViM(
        Config(model=shape, num_classes=3, schedule=dense_schedule(shape), preprocessing=PREP),
        backends.choose("reference"),
    )
    initialize(dense, seed=0).requires_grad_(False)
    return stm.compress(dense, method="staged", stages=[2, 3])


def explained(small: ViM, count: int = 1) -> Explanation:
    inputs = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(2))[:count]
    pictures = [(f"{number}.png", Image.new("L", (60, 60), 40 * number)) for number in range(count)]
    return measure(small, inputs, pictures, block=2, places=None)


def costs_of(small: ViM, found: Explanation) -> CostMap:
    fitting = fit(small.with_plan(None), pictures(small.config, n=6), keep=False)
    return cost_map(fitting, found.images[0].groups)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Explanation, tuple[str, ...]]:
    folder = tmp_path_factory.mktemp("explained")
    small = compressed()
    found = explained(small, 2)
    with plots.style():
        files = explanation.write(folder, found, small, costs_of(small, found), "stm")
    return folder, found, files


def test_every_figure_is_there_twice_with_its_data(written: tuple[Path, Explanation, tuple[str, ...]]) -> None:
    folder, _, files = written
    assert sorted(path.name for path in folder.iterdir()) == sorted(files)
    assert set(files) <= set(file_names())
    figures = {name.removesuffix(".png") for name in files if name.endswith(".png")}
    assert figures == {
        "fading",
        "losses",
        "ldsd",
        "costs",
        "schedule",
        "image-1-maps",
        "image-1-groups",
        "image-2-maps",
        "image-2-groups",
    }
    for figure in figures:
        with Image.open(folder / f"{figure}.png") as image:
            assert image.width >= 600
        assert ElementTree.parse(folder / f"{figure}.svg").getroot().tag.endswith("svg")
        assert any(name.startswith(figure) and name.endswith((".csv", ".json")) for name in files)


def test_the_data_are_the_numbers(written: tuple[Path, Explanation, tuple[str, ...]]) -> None:
    folder, found, _ = written

    def rows(name: str) -> list[dict[str, str]]:
        with open(folder / name, newline="") as file:
            return list(csv.DictReader(file))

    for row, each in zip(rows("fading.csv"), found.fading, strict=True):
        assert (row["side"], int(row["distance"])) == (each.side, each.distance)
        assert float(row["class_block_3"]) == pytest.approx(each.cls[1], rel=1e-5)
    assert [(row["after_block"], row["rule"]) for row in rows("losses.csv")] == [
        (str(each.after), each.rule) for each in found.losses
    ]
    assert [float(row["block_0"]) for row in rows("ldsd.csv")] == pytest.approx(
        [each.blocks[0] for each in found.influence], rel=1e-5
    )
    assert [float(row["forward"]) for row in rows("plan.csv")] == pytest.approx(
        [change for change, _ in found.plan], rel=1e-5
    )
    dense, merged = found.images[0].maps
    maps = rows("image-1-maps.csv")
    assert [row["positions"] for row in maps if row["model"] == "merged"] == [
        " ".join(map(str, group)) for group in merged.groups
    ]
    assert [float(row["state_backward"]) for row in maps if row["model"] == "dense"] == pytest.approx(
        dense.state[1], rel=1e-5
    )
    attention = [
        [float(row[str(j)]) for j in range(10)] for row in rows("image-1-attention.csv") if row["model"] == "dense"
    ]
    assert attention[4] == pytest.approx(dense.attention[4], rel=1e-5)
    # 10 tokens, the class token at 4; all pairs before block 2, and pairs of these before block 3
    assert [(row["before_block"], row["positions"]) for row in rows("schedule.csv")] == [
        ("2", "0 1"),
        ("2", "2 3"),
        ("2", "6 7"),
        ("2", "8 9"),
        ("3", "0 1 2 3"),
        ("3", "6 7 8 9"),
    ]
    costs = rows("costs.csv")
    assert [(row["before_block"], row["position"], row["patch"]) for row in costs[3:6]] == [
        ("1", "3", "3"),
        ("1", "4", ""),
        ("1", "5", "4"),
    ]
    assert len(costs) == 3 * 10 and all((row["cost_per_token_layer"] == "") == (row["patch"] == "") for row in costs)
    document = json.loads((folder / "image-1-groups.json").read_text())
    assert [stage["tokens"] for stage in document["stages"]] == [10, 6, 4]
    assert document["stages"][1]["patches"] == [[0, 1], [2, 3], [4], [5, 6], [7, 8]]


def test_a_class_token_at_the_head_has_one_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its figures are drawn as they are, in one small file each."""
    small = compressed("head")
    found = explained(small)
    assert {each.side for each in found.fading} == {each.side for each in found.influence} == {"right"}
    assert found.fits["left"] is None and found.fits["right"] is not None

    def draw(figure: Any, folder: Path, name: str) -> tuple[str]:
        figure.savefig(folder / f"{name}.png", dpi=30)
        return (f"{name}.png",)

    monkeypatch.setattr(plots, "save", draw)
    with plots.style():
        files = explanation.write(tmp_path, found, small, costs_of(small, found), "stm")
    assert len([name for name in files if name.endswith(".png")]) == 7


def test_the_cost_of_a_position_is_that_of_its_cheaper_pair() -> None:
    """By hand: a table of two blocks and five tokens, the class token at 2, [block - 1][first of the pair]."""
    small = compressed()
    fitting = fit(small.with_plan(None), pictures(small.config, n=3), keep=False)
    cost = torch.zeros(3, 10, 17, dtype=torch.float64)
    pairs = [6.0, 12.0, 3.0, 99.0, 99.0, 9.0, 30.0, 0.0, 15.0, 99.0]  # those of the class token, at 4, are no pairs
    cost[:, :, 2] = torch.tensor(pairs)  # the same before each block: nothing for the isotonic fit to do
    found = cost_map(dataclasses.replace(fitting, effects=fitting.effects._replace(cost=cost)), ())
    # before block 1 of four, a pair saves three token-layers; a cost of 0 has no logarithm
    assert str(found.cost[0]) == str((2.0, 2.0, 1.0, 1.0, nan, 3.0, 3.0, nan, nan, 5.0))
    assert str(found.cost[2]) == str((6.0, 6.0, 3.0, 3.0, nan, 9.0, 9.0, nan, nan, 15.0))
    assert [cell[3] for cell in rows_of(found)][2:5] == [1.0, 1.0, ""]
    assert found.images.startswith("3 drawn pictures, seed 0, sha256 ")


def test_what_merges_before_each_block() -> None:
    blocks = (((0,), (1,), (2,), (3,)), ((0, 1), (2,), (3,)), ((0, 1), (2,), (3,)), ((0, 1, 3), (2,)))
    assert formed(blocks) == [Formed(1, (0, 1)), Formed(3, (0, 1, 3))]
    found = CostMap(((1.0,) * 4,), 2, "", tuple(formed(blocks)))
    assert found.first_merge == {0: 1, 1: 1, 3: 3}
    assert runs((0, 1, 3, 6, 7, 8)) == [[0, 1], [3], [6, 7, 8]]


def test_means_over_images() -> None:
    rows = explanation.mean_rows([[Loss(0, "mean", 0.25, 1.0)], [Loss(0, "mean", 0.75, 3.0)]])
    assert rows == (Loss(0, "mean", 0.5, 2.0),)
    one, two = (explained(compressed(), count) for count in (1, 2))
    assert one.fading != two.fading and one.images[0].maps == two.images[0].maps


def test_values_of_tokens_become_values_of_patches() -> None:
    maps = Maps("x", [[]], [[]], 1, ((0, 3), (2,), (4,)))  # of five positions, the class token at 2, position 1 pruned
    found = maps.by_patch([7.0, 8.0, 9.0], 5, 2)
    assert found[0] == found[2] == 7 and found[3] == 9 and str(found[1]) == "nan"


def test_without_matplotlib_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(StmError, match="matplotlib, which is not installed") as caught:
        plots.require()
    assert caught.value.hint == "pip install matplotlib"
