"""Backbones of segmentation checkpoints: against the official code's own outputs, and merged.

hustvl/Vim's model class (vim/models_mamba.py@dd0358a) ran as it is, on a CPU in float64, with `if_cls_token=False` and
`final_pool_type="all"`, and with torch equations in the place of its CUDA kernels. The weights are those of weights.py,
without class token and head: 64 x 64 pixels, patch 8, D=32, 6 blocks.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import stm
from stm.bench.gemms import gemms_of
from stm.checkpoint.official import read
from stm.commands.bench import bench
from stm.commands.compress import compress
from stm.commands.eval import evaluate
from stm.commands.export import export
from stm.commands.info import info
from stm.errors import CheckpointError, StmError, UsageError
from stm.measure import flops
from stm.options import EvalOptions, MergeOptions, ModelOptions
from tests.golden.weights import state_dict

GOLDEN = Path(__file__).parent / "backbone" / "golden.safetensors"
DECODER = {"decode_head.conv_seg.weight": torch.ones(5, 32, 1, 1), "auxiliary_head.conv_seg.weight": torch.ones(5, 32)}
FPN = {"fpn1.0.weight": torch.ones(32, 32, 2, 2), "outnorm_0.weight": torch.ones(32)}


def trunk() -> dict[str, Tensor]:
    state = state_dict(D=32, depth=6, tokens=65, classes=10, patch=8, seed=41)
    state["pos_embed"] = state["pos_embed"][:, 1:].clone()
    return {name: value for name, value in state.items() if name.split(".")[0] not in ("cls_token", "head")}


def saved(path: Path, state: dict[str, Tensor], config: str = "model = dict()") -> Path:
    """As mmcv's runner writes it."""
    whole = {f"backbone.{name}": value for name, value in (state | FPN).items()} | DECODER
    meta = {"mmseg_version": "0.29.1", "CLASSES": ("wall", "sky"), "config": config}
    torch.save({"meta": meta, "state_dict": whole, "optimizer": {"state": {}, "param_groups": []}}, path)
    return path


@pytest.fixture
def dense(tmp_path: Path) -> stm.ViM:
    return stm.load(saved(tmp_path / "iter_60000.pth", trunk()), backbone=True, image_size=64, device="cpu")


def images() -> Tensor:
    g = torch.Generator().manual_seed(42)
    return torch.randn(2, 3, 64, 64, generator=g, dtype=torch.float64).float()


def test_features_equal_the_official_code(dense: stm.ViM, error: Callable[[Tensor, Tensor], float]) -> None:
    features = dense.features(images())
    expected = load_file(GOLDEN)["features"].mT.unflatten(-1, (8, 8))
    assert features.shape == (2, 32, 8, 8)
    assert error(features, expected) <= 1e-5
    with pytest.raises(StmError, match="backbone without a head") as caught:
        dense(images())
    assert "features" in str(caught.value.hint)
    # Every token of the last block is read, so both counts of it are those of the others.
    config = dense.config
    assert flops.parameters(config.model, 0) == sum(p.numel() for p in dense.parameters())
    first, second = (flops.honest(shaped, 0, flops.Dense()) for shaped in (config.model, shallower(config.model)))
    assert first - second == (first - flops.honest(shallower(config.model, 5), 0, flops.Dense())) / 5


def shallower(model: Any, by: int = 1) -> Any:
    from dataclasses import replace

    return replace(model, depth=model.depth - by)


@pytest.mark.parametrize("options", [{"fit_on": "images"}, {"method": "staged"}, {"rate": 0}])
def test_merged_backbones_fill_the_whole_grid(dense: stm.ViM, tmp_path: Path, options: dict[str, Any]) -> None:
    if "fit_on" in options:
        options = {"fit_on": torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))}
    small = stm.compress(dense, **{"rate": 0.3} | options)
    features = small.features(images())
    if options.get("rate") == 0:
        assert torch.equal(features, dense.features(images()))
        return
    assert features.shape == (2, 32, 8, 8) and small.schedule.tokens_per_block(6)[-1] < 64
    # Patches of one token have the same features, and each token has those of its own.
    flat = features.flatten(2)
    for group in small.schedule.groups[-1]:
        assert all(torch.equal(flat[..., group[0]], flat[..., member]) for member in group)
    small.save_pretrained(tmp_path / "out")
    again = stm.load(tmp_path / "out", device="cpu")
    assert torch.equal(again.features(images()), features) and again.config == small.config
    document = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (document["num_classes"], document["model"]["class_tokens"]) == (0, 0)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "model.features(images)" in card and "stm predict" not in card and "class token at" not in card.split("|")[0]


def test_a_fit_costs_the_features_less_than_stages(dense: stm.ViM) -> None:
    """The costs are those of the features: at the same saving the fitted cut moves them less."""
    g = torch.Generator().manual_seed(3)
    pictures = torch.randn(8, 3, 64, 64, generator=g)
    fitted, staged = (stm.compress(dense, saving=0.2, **o) for o in ({"fit_on": pictures}, {"method": "staged"}))
    with torch.inference_mode():
        moved = [(small.features(images()) - dense.features(images())).norm() for small in (fitted, staged)]
    assert moved[0] < moved[1]


def test_what_a_backbone_cannot_do_is_one_sentence(dense: stm.ViM, tmp_path: Path) -> None:
    for options, words in (
        ({"method": "paper"}, "merges toward a class token"),
        ({"sides": "left"}, "has no class token"),
        ({"schedule": "staged", "sides": "right"}, "has no class token"),
    ):
        with pytest.raises(UsageError, match=words):
            stm.compress(dense, rate=0.3, **options)
    with pytest.raises(StmError, match="backbone without a head"):
        dense.optimize(batch_size=1)
    with pytest.raises(UsageError, match="far its features are from those of a dense backbone") as caught:
        stm.evaluate(dense, [(image, 0) for image in images()])
    assert caught.value.hint == "give that one: reference=DENSE"
    with pytest.raises(UsageError, match="a line per image for logits"):
        stm.evaluate(dense, [(image, 0) for image in images()], reference=dense, records=tmp_path / "r.csv")
    seg = str(saved(tmp_path / "iter.pth", trunk()))
    source = ModelOptions(backbone=True, image_size=64)
    with pytest.raises(UsageError, match="is a dense backbone") as caught:
        evaluate(seg, source)
    assert caught.value.hint == f"compress it first: stm compress {seg} --image-size 64 --backbone"
    for refused in (lambda: bench(seg, source, optimize=True), lambda: bench(seg, source, against=["vit"])):
        with pytest.raises(StmError, match="backbone without a head") as said:
            refused()
        assert "stm eval measures how far merging moves its features, stm bench times it" in str(said.value)


def test_the_labels_of_a_set_are_not_read(dense: stm.ViM, tmp_path: Path) -> None:
    """A backbone has no classes: a classifier's folders, pairs and sets are images, and the features are compared."""
    path = saved(tmp_path / "iter.pth", trunk())
    for name in ("benign", "malignant"):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("RGB", (80, 64), (90, 9, 200 if name == "benign" else 3)).save(tmp_path / "set" / name / "a.png")
    source = ModelOptions(backbone=True, image_size=64)
    merge, given = MergeOptions(saving=0.2, method="staged"), EvalOptions(data=tmp_path / "set")
    report = compress(str(path), source, merge, images=given, out=tmp_path / "small")
    by_command = evaluate(str(tmp_path / "small"), images=given)
    small = stm.load(tmp_path / "small", device="cpu")
    in_python = stm.evaluate(small, tmp_path / "set", reference=dense)
    assert (by_command.n, by_command.feature_change) == (in_python.n, in_python.feature_change)
    assert by_command.n == 2 and by_command.feature_change == report.feature_change is not None
    assert in_python.reasons.keys() == by_command.reasons.keys()
    pairs = stm.evaluate(small, [(image, 7) for image in images()], reference=dense)
    assert pairs.n == 2 and pairs.feature_change is not None and pairs.feature_change > 0


def test_bench_times_the_features(tmp_path: Path) -> None:
    """All tokens of the last block count, also if a classifier's backbone has a class token."""
    path = tmp_path / "x_midclstok.pth"
    torch.save(state_dict(D=32, depth=6, tokens=65, classes=10, patch=8, seed=41), path)
    of = {}
    for backbone in (True, False):
        source = ModelOptions(backbone=backbone, image_size=64, device="cpu")
        of[backbone] = bench(str(path), source, MergeOptions(saving=0.2, method="staged"), rounds=1)
    assert [row.variant for row in of[True].rows] == ["dense", "compressed"]
    assert of[True].rows[0].flops.honest > of[False].rows[0].flops.honest
    model = stm.load(path, image_size=64, backbone=True, device="cpu")
    rows = [product.rows for product in gemms_of(model)]
    assert min(rows) == 64 and len(rows) == 1 + 6 * 6  # patches; in_proj, twice x_proj and dt_proj, out_proj


def test_reading_says_what_is_left_out(tmp_path: Path) -> None:
    path = saved(tmp_path / "iter.pth", trunk(), "model = dict(if_divide_out=False)")
    with pytest.raises(CheckpointError, match="segmentation or detection") as caught:
        read(path)
    assert "--backbone" in str(caught.value.hint)
    got = read(path, backbone=True)
    assert got.num_classes == got.model.class_tokens == 0 and not got.model.divide_out  # as mmcv's text says
    assert any("no part of the backbone" in note and "fpn1.0.weight" in note for note in got.notes)
    assert "auxiliary_head.conv_seg.weight" in "".join(got.notes)  # by its name in the file, and no word of a head
    assert not any("the head" in note for note in got.notes)
    with pytest.raises(UsageError, match="no class token"):
        read(path, backbone=True, class_token="head")
    for extra, words in (
        ({"rope.freqs_cos": torch.ones(3)}, "rotary"),
        ({"layers.0.mixer.layernorm.weight": torch.ones(64)}, "norm"),
        ({"layers.0.mixer.secret": torch.ones(3)}, "unexpected"),
    ):  # strictness stays: what changes the backbone's numbers is no decoder
        with pytest.raises(CheckpointError, match=words):
            read(saved(tmp_path / "odd.pth", trunk() | extra), backbone=True)
    part = {name: value for name, value in trunk().items() if name != "layers.3.mixer.D"}
    with pytest.raises(CheckpointError, match=r"1 missing \(layers\.3\.mixer\.D\)"):
        read(saved(tmp_path / "part.pth", part), backbone=True)


def test_a_detector_has_no_final_norm(tmp_path: Path) -> None:
    """detectron2's: under backbone.net, and hustvl/Vim's code deletes norm_f."""
    state = {f"backbone.net.{name}": value for name, value in trunk().items() if name != "norm_f.weight"}
    torch.save(
        {"model": state | {"backbone.simfp_2.0.weight": torch.ones(3), "roi_heads.x": torch.ones(2)}}, tmp_path / "d"
    )
    got = read(tmp_path / "d", backbone=True, image_size=64)
    assert any("no final norm" in note for note in got.notes) and bool((got.tensors["norm_f.weight"] == 1).all())


def test_the_backbone_of_a_classifier_keeps_its_class_token(tmp_path: Path, error: Any) -> None:
    path = tmp_path / "x_midclstok.pth"
    torch.save(state_dict(D=32, depth=6, tokens=65, classes=10, patch=8, seed=41), path)
    whole = stm.load(path, image_size=64, device="cpu")
    alone = stm.load(path, image_size=64, backbone=True, device="cpu")
    assert (alone.config.num_classes, alone.config.model.class_tokens) == (0, 1)
    assert torch.equal(alone.features(images()), whole.features(images()))
    assert stm.compress(alone, rate=0.3, method="paper").features(images()).shape == (2, 32, 8, 8)


def test_commands_take_a_backbone(dense: stm.ViM, tmp_path: Path) -> None:
    dense.save_pretrained(tmp_path / "dense")
    assert info(str(tmp_path / "dense")).parameters == flops.parameters(dense.config.model, 0)
    report = export(str(tmp_path / "dense"), out=tmp_path / "back.pth")
    assert report.reading["backbone"] and report.tensors == len(trunk())
    back = stm.load(tmp_path / "back.pth", **report.reading | {"device": "cpu"})
    assert torch.equal(back.features(images()), dense.features(images()))
    assert ModelOptions(backbone=True).words() == ["--backbone"]


def test_the_change_of_features_is_a_figure(dense: stm.ViM, tmp_path: Path) -> None:
    """In the reports of compress and eval, in config.json and in the card: the root of the mean of the squared
    relative change, by plain torch. A classifier has null, and the reason."""
    dense.save_pretrained(tmp_path / "dense")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(3):
        Image.new("RGB", (64, 64), (60 * i, 200 - 50 * i, 30)).save(pictures / f"{i}.png")
    set_of, model = EvalOptions(data=pictures), str(tmp_path / "dense")
    report = compress(model, merge=MergeOptions(rate=0.3, method="staged"), images=set_of, out=tmp_path / "small")
    small = stm.load(tmp_path / "small", device="cpu")
    x = torch.cat([stm.preprocess(Image.open(path), dense) for path in sorted(pictures.iterdir())])
    with torch.inference_mode():
        f, moved = (each.features(x).double().flatten(1) for each in (dense, small))
    expected = float(((moved - f).square().sum(1) / f.square().sum(1)).mean().sqrt())
    assert report.feature_change == pytest.approx(expected, rel=1e-4) and report.eval is None and expected > 0.001
    measured = evaluate(str(tmp_path / "small"), images=set_of)
    assert measured.feature_change == report.feature_change and (measured.n, measured.top1) == (3, None)
    assert json.loads(measured.to_json())["feature_change"] == report.feature_change
    assert small.config.measured[0].feature_change == report.feature_change
    assert "| change of the features (root mean square) |" in (tmp_path / "small" / "README.md").read_text()
    for refused, words in (({"records": tmp_path / "r.csv"}, "records has a line per image"), ({}, "backbone")):
        with pytest.raises(StmError, match=words):
            evaluate(model if not refused else str(tmp_path / "small"), images=set_of, **refused)
    digits = json.loads(evaluate("vim-digits", images=EvalOptions(limit=4)).to_json())
    assert digits["feature_change"] is None and "logits" in digits["reasons"]["feature_change"]
