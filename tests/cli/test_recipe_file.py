"""`stm compress --save-recipe` and `--recipe FILE`: the same choice gives the same bytes."""

import json
import random
from pathlib import Path

import pytest
from PIL import Image

from stm.commands import predict
from stm.export import formats

FILES = ("model.safetensors", "config.json")
FIT = ("--fit-images", "6")
CHOICES = {
    "fitted, as float16": ("--saving", "0.3", *FIT, "--dtype", "float16", "--seed", "2", "--limit", "9"),
    "a gate, int8": ("--data", "NOISE", "--rate", "0.2", "--method", "paper", "--max-drop", "90", "--dtype", "int8"),
    "calibrated": ("--stages", "2,4", "--weights", "hsp", "--hsp", "static", "--calibration", "NOISE", "--no-eval"),
}
SLOW = {
    "fitted on a part of what is measured": ("--data", "MANY", "--rate", "0.4", "--limit", "20", *FIT),
    "an outcome": ("--data", "MANY", "--max-drop", "100"),
}


def many(folder: Path, mini: Path) -> Path:
    """Seventy images with the labels that the mini model gives them: enough to be cut into two parts."""
    folder.mkdir()
    draw = random.Random(2)
    for number in range(70):
        Image.frombytes("RGB", (5, 5), draw.randbytes(75)).resize((64, 64)).save(folder / f"{number}.png")
    told = predict.predict(str(mini), sorted(folder.iterdir()))
    rows = [f"{Path(each.file).name},{each.top5[0].index}\n" for each in told.predictions]
    (folder / "labels.csv").write_text("filename,label\n" + "".join(rows))
    return folder


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("name", [*CHOICES, *(pytest.param(name, marks=pytest.mark.slow(seconds=60)) for name in SLOW)])
def test_a_recipe_gives_the_same_bytes(here, mini: Path, labelled: Path, tmp_path: Path, name: str) -> None:
    words = [str(labelled) if word == "NOISE" else word for word in (CHOICES | SLOW)[name]]
    if "MANY" in words:
        words[words.index("MANY")] = str(many(tmp_path / "many", mini))
    made = here("compress", mini, *words, "--quiet", "--out", "first", "--save-recipe", "recipe.yaml")
    assert made.code == 0, made.err
    again = here("compress", mini, "--recipe", "recipe.yaml", "--quiet", "--out", "second", "--save-recipe", "2.yaml")
    assert again.code == 0, again.err
    for file in FILES:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes(), file
    assert (tmp_path / "recipe.yaml").read_text() == (tmp_path / "2.yaml").read_text()


def test_a_folder_s_recipe_becomes_a_file(here, mini: Path, tmp_path: Path) -> None:
    assert here("compress", mini, "--saving", "0.3", *FIT, "--no-eval", "--out", "first").code == 0
    assert here("compress", mini, "--recipe", "first", "--quiet", "--out", "2", "--save-recipe", "r.yaml").code == 0
    assert here("compress", mini, "--recipe", "r.yaml", "--quiet", "--out", "3").code == 0
    for file in FILES:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "3" / file).read_bytes()


def test_what_is_typed_counts_and_the_merges_are_another_model_s(here, mini: Path, tmp_path: Path) -> None:
    quick = ("compress", mini, "--no-eval", *FIT, "--out", "out", "--force")
    assert here(*quick, "--saving", "0.3", "--save-recipe", "r.yaml").code == 0
    report = json.loads((run := here(*quick, "--recipe", "r.yaml", "--saving", "0.2", "--json")).out)
    assert report["recipe"]["saving"] == 0.2 and "Note: --saving 0.2 counts, and not saving 0.3 of r.yaml" in run.err
    wrong = here("compress", "vim-digits", "--recipe", "r.yaml", "--out", "other")
    assert wrong.code == 2 and "Error: vim-digits" not in wrong.err
    assert "the merges of r.yaml do not fit this model of 197 tokens, class token at 98, and 24 blocks" in wrong.err
    assert "they are for 50 tokens, class token at 24" in wrong.err
    text = (tmp_path / "r.yaml").read_text()
    (tmp_path / "r.yaml").write_text(text.replace("source: '7468", "source: '0000"))
    assert "the merges of r.yaml were fitted to other weights (sha256 0000" in here(*quick, "--recipe", "r.yaml").err


def test_no_recipe_is_left_of_what_is_not_written(here, mini: Path, labelled: Path, tmp_path: Path) -> None:
    hard = ("compress", mini, "--stages", "1,2,3,4", "--weights", "prune", "--data", labelled, "--max-drop", "5")
    assert here(*hard, "--save-recipe", "r.yaml").code == 3
    assert here("compress", mini, *FIT, "--no-eval", "--dry-run", "--save-recipe", "r.yaml").code == 0
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "r.yaml").write_text("mine")
    refused = here("compress", mini, "--no-eval", "--save-recipe", "r.yaml")
    assert refused.code == 2 and "Error: r.yaml already exists" in refused.err
    assert (tmp_path / "r.yaml").read_text() == "mine"
    assert "expected a name that ends in .yaml" in here("compress", mini, "--save-recipe", "recipe").err
    missing = here("compress", mini, "--recipe", "none.yaml")
    assert missing.code == 1 and missing.err.startswith("Error: none.yaml cannot be read")


def test_a_recipe_exports_beside_the_folder(here, mini: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("recipe_version: 1\nstages: [2, 4]\nno_eval: true\nexport: [official, folder]\n")
    (tmp_path / "out.pth").touch()
    refused = here("compress", mini, "--recipe", "r.yaml", "--out", "out")
    assert refused.code == 2 and "out.pth already exists" in refused.err and not (tmp_path / "out").exists()
    report = json.loads(here("compress", mini, "--recipe", "r.yaml", "--out", "out", "--force", "--json").out)
    assert report["exports"] == ["out.pth", "out-dense"]
    assert here("info", "out-dense").code == 0 and (tmp_path / "out.pth").stat().st_size > 100_000


@pytest.mark.slow(seconds=150)
def test_the_exports_of_a_recipe_have_the_same_bytes(here, mini: Path, tmp_path: Path) -> None:
    """For other runtimes, and checked in each."""
    wanted = [name for name in ("onnx", "openvino", "pt2") if not formats.FORMATS[name].packages]
    listed = ", ".join(wanted)
    (tmp_path / "r.yaml").write_text(f"recipe_version: 1\nstages: [2, 4]\nno_eval: true\nexport: [{listed}]\n")
    first = here("compress", mini, "--recipe", "r.yaml", "--out", "1", "--json", "--save-recipe", "saved.yaml")
    assert first.code == 0, first.err
    exports = [Path(f"1{formats.FORMATS[name].suffix}") for name in wanted]
    assert json.loads(first.out)["exports"] == [str(path) for path in exports]
    assert f"export: [{listed}]" in (tmp_path / "saved.yaml").read_text()
    assert here("compress", mini, "--recipe", "saved.yaml", "--out", "2", "--quiet").code == 0
    for one in (Path("1"), *exports):
        other = Path(str(one).replace("1", "2", 1))
        names = sorted(path.name for path in one.iterdir()) if one.is_dir() else [""]
        for name in names:
            if name != "README.md":  # it has the folder's name
                assert (one / name).read_bytes() == (other / name).read_bytes(), one / name


def test_a_dtype_that_a_runtime_lacks_is_refused_before_any_work(here, mini: Path, tmp_path: Path) -> None:
    if formats.FORMATS["onnx"].packages:
        pytest.skip("the extra `export` is not installed")
    (tmp_path / "r.yaml").write_text("recipe_version: 1\nsaving: 0.3\ndtype: bfloat16\nexport: [onnx]\n")
    refused = here("compress", mini, "--recipe", "r.yaml", "--out", "out")
    assert refused.code == 2 and "ONNX is not written in bfloat16" in refused.err
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]
