"""Mamba-R against the official code's own outputs (wangf3014/Mamba-Reg@0f7c2da, run on a CPU), and merged.

The official model classes ran as they are, in float32 and float64, with torch equations in the place of their CUDA
kernels. The weights are those of `mamba_r` in weights.py. There are two mini models (64 x 64 pixels, patch 8, D=32, 4
blocks), with a neck and without, and Mamba-R-T and -S at full size, whose one image is drawn here too.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import stm
from stm import backends, config_file
from stm.commands.export import export
from stm.data.fit_images import pictures
from stm.errors import ArtifactError, CheckpointError, UsageError
from stm.explain import cost_figures, figures
from stm.explain.costs import cost_map, rows_of
from stm.explain.measurements import fading, groups_by_block, losses, plan_change, walk
from stm.fitting import fit
from stm.measure import flops
from stm.measure.equal_cost import solve_peer
from stm.merging.bnnm import parts_of
from stm.merging.groups import stages
from stm.options import ModelOptions
from stm.page import charts
from stm.plots import style
from tests.golden.weights import mamba_r

Error = Callable[[Tensor, Tensor], float]
Tell = Callable[[str, float, str], None]
BOUND = 1e-4
GOLDEN = Path(__file__).parent / "mamba-r" / "golden.safetensors"
MINI = {"neck": (4, 2, 21), "plain": (3, 1, 22)}  # class tokens, the neck's divisor, seed
FULL = {"tiny": (192, 1, 23), "small": (384, 2, 24)}  # D, the neck's divisor, seed


def mini_state(name: str) -> dict[str, Tensor]:
    n, reduce, seed = MINI[name]
    state: dict[str, Tensor] = mamba_r(32, 4, n, reduce, patches=64, classes=10, patch=8, seed=seed)
    return state


def saved(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save({"model": state}, folder / "mambar.pth")
    return folder / "mambar.pth"


def loaded(name: str, folder: Path, **options: Any) -> stm.ViM:
    return stm.load_checkpoint(saved(mini_state(name), folder), device="cpu", image_size=64, **options)


@pytest.mark.parametrize("backend", ["reference", "blocked", "native"])
@pytest.mark.parametrize("name", MINI)
def test_logits_equal_the_official_code(name: str, backend: str, tmp_path: Path, error: Error, tell: Tell) -> None:
    if not backends.status(backend)[0]:
        pytest.skip(f"backend {backend}: {backends.status(backend)[1]}")
    expected = load_file(GOLDEN)
    model, images = loaded(name, tmp_path, backend=backend), expected["inputs"]
    with torch.inference_mode():
        full = model.classify(model.run(model.embed(images), full=True))
        found = {"logits": model(images), "full": full, "served": model.optimize(batch_size=2)(images)}
    errors = {key: error(logits, expected[f"{name}.logits_f64"]) for key, logits in found.items()}
    errors["float32"] = error(found["logits"], expected[f"{name}.logits"])
    worst = max(errors, key=errors.__getitem__)
    tell(f"mamba-r {name}, {backend}", errors[worst], worst)
    assert errors[worst] <= BOUND
    assert model.config.preprocessing.resize == 64  # the whole short side


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_full_size_equals_the_official_code(name: str, tmp_path: Path, error: Error, tell: Tell) -> None:
    D, reduce, seed = FULL[name]
    expected, g = load_file(GOLDEN), torch.Generator().manual_seed(7)
    images = torch.randn((1, 3, 224, 224), generator=g, dtype=torch.float64).float()
    model = stm.load_checkpoint(saved(mamba_r(D, 24, 12, reduce, seed=seed), tmp_path), device="cpu")
    assert model.config.model.cls == tuple(range(15, 208, 16))[:12]
    assert flops.parameters(model.config.model, 1000) == sum(p.numel() for p in model.parameters())
    with torch.inference_mode():
        worst = error(model(images), expected[f"{name}.logits_f64"])
    tell(f"mamba-r {name}, full size", worst, "logits")
    assert worst <= BOUND


@pytest.mark.parametrize("method", ["stm", "staged", "paper"])
def test_merges_go_toward_the_nearest_class_token(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for bound in ("_FEW", "_MANY"):  # one picture of each kind is enough for a fit here
        monkeypatch.setattr(f"stm.data.fit_images.{bound}", 1)
    model = loaded("neck", tmp_path)
    small = stm.compress(model, rate=0.25, method=method)
    assert model.schedule.cls == (12, 25, 38, 51)
    for last in small.schedule.groups[-1]:
        nearest = {min(model.schedule.cls, key=lambda c: abs(c - position)) for position in last}
        assert len(nearest) == 1 and (len(last) == 1 or not set(last) & set(model.schedule.cls))
    small.save_pretrained(tmp_path / "out")
    again, images = stm.load(tmp_path / "out", device="cpu"), load_file(GOLDEN)["inputs"]
    with torch.inference_mode():
        logits = small(images)
        assert torch.equal(again(images), logits)
        torch.testing.assert_close(again.optimize(batch_size=2)(images), logits)
        torch.testing.assert_close(small.classify(small.run(small.embed(images), full=True)), logits)
    assert again.config == small.config and small.schedule.tokens_per_block(4)[-1] < 68
    assert small.features(images).shape == (2, 32, 8, 8)


def test_the_sides_of_class_tokens_are_the_patches_nearest_to_them() -> None:
    parts = parts_of(12, (2, 6), "both")
    assert parts == [range(2), range(4, 2, -1), range(5, 6), range(11, 6, -1)]
    assert parts_of(12, (2, 6), "right") == [range(4, 2, -1), range(11, 6, -1)]


def test_the_official_file_comes_back(tmp_path: Path) -> None:
    state = mini_state("neck")
    saved(state, tmp_path)
    source = ModelOptions(image_size=64, device="cpu")
    report = export(str(tmp_path / "mambar.pth"), source, out=tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    assert report.reading == {"image_size": 64}


@pytest.mark.parametrize(
    ("part", "key", "value", "problem"),
    [
        ("model", "class_tokens", 257, "class_tokens is 257, expected at most 64"),
        ("model", "neck", 0, "neck is 0"),
        ("schedule", "class_token", [51, 12, 25, 38], "expected ascending positions"),
        ("schedule", "class_token", [12, 25, 38], "the model has 68"),
        ("schedule", "class_token", [12, "x"], "expected an integer"),
        ("schedule", "class_token_per_block", [[0]] * 4, "contradicts its steps"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(
    part: str, key: str, value: object, problem: str, tmp_path: Path
) -> None:
    document = config_file.to_json(loaded("neck", tmp_path).config)
    assert document["schedule"]["class_token"] == [12, 25, 38, 51] and document["model"]["neck"] == 16
    document[part][key] = value
    with pytest.raises(ArtifactError, match=problem):
        config_file.from_json(document)


def test_what_is_no_mamba_r_is_named(tmp_path: Path) -> None:
    state = mini_state("neck")
    del state["norm_neck.weight"]
    with pytest.raises(CheckpointError, match=r"1 missing \(norm_neck.weight\)"):
        stm.load_checkpoint(saved(state, tmp_path), image_size=64)
    with pytest.raises(UsageError, match="4 class tokens are spread"):
        loaded("neck", tmp_path, class_token="head")


def test_peers_take_several_class_tokens_or_say_so(tmp_path: Path) -> None:
    model = loaded("neck", tmp_path)
    random = solve_peer(model.config, "random", 0.2)
    with torch.inference_mode():
        state = model.with_plan(random.plan).run(model.embed(load_file(GOLDEN)["inputs"]))
    assert state.x.shape[1] == 4 and random.near
    with pytest.raises(UsageError, match="EViT takes models with one class token, and this one has 4"):
        solve_peer(model.config, "evit", 0.2)


def test_explain_measures_the_middle_class_token(tmp_path: Path) -> None:
    """The third of four, at 38, which tokens 32 to 44 merge toward; every figure that has class tokens is drawn."""
    model = loaded("neck", tmp_path)
    small = stm.compress(model, saving=0.2, method="staged")
    image = load_file(GOLDEN)["inputs"][:1]
    with torch.inference_mode():
        rows = fading(model, image, 2, most=2)
        changes = [row.cls for row in losses(model, image, most=1)]
        was, now = (list(walk(each, each.embed(image))) for each in (model, small))
        assert [(row.side, row.distance) for row in rows] == [("left", 1), ("left", 5), ("right", 1), ("right", 5)]
        assert all(math.isfinite(value) for value in (*changes, *(row.logits for row in rows)))
        assert 0 < float(plan_change(was, now)[-1].max()) < 10
    costs = cost_map(fit(model, pictures(model.config, n=3), keep=False), small.schedule.groups)
    assert [row[2] for row in rows_of(costs)][11:14] == ["11", "", "12"]
    picture = Image.new("RGB", (64, 64))
    with style.style():
        style.save(cost_figures.costs(costs, "x"), tmp_path, "costs")
        drawn = figures.groups(picture, stages(groups_by_block(now)), 68, small.schedule.cls, (8, 8), "x")
        style.save(drawn, tmp_path, "groups")
    assert (tmp_path / "costs.svg").stat().st_size and len(charts.costs(costs)["cls"]) == 4
