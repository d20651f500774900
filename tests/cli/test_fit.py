"""The fitted schedule as a user meets it: which images it comes from, which measure it, and what is refused."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stm.commands import predict

RATE = ("--rate", "0.4")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test fills the user's cache, and none finds there what another one left."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def noise(folder: Path, n: int, seed: int = 0) -> Path:
    """Images of a few large patches of colour."""
    folder.mkdir(parents=True)
    draw = random.Random(seed)
    for number in range(n):
        Image.frombytes("RGB", (5, 5), draw.randbytes(75)).resize((64, 64)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seventy images without labels."""
    return noise(tmp_path_factory.mktemp("many") / "many", 70)


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight others."""
    return noise(tmp_path_factory.mktemp("few") / "few", 8, seed=1)


@pytest.fixture(scope="session")
def right(tmp_path_factory: pytest.TempPathFactory, mini: Path) -> Path:
    """Seventy images with the labels that the mini model gives them."""
    folder = noise(tmp_path_factory.mktemp("right") / "right", 70, seed=2)
    found = predict.predict(str(mini), sorted(folder.iterdir()))
    rows = [f"{Path(each.file).name},{each.top5[0].index}\n" for each in found.predictions]
    (folder / "labels.csv").write_text("filename,label\n" + "".join(rows))
    return folder


@pytest.fixture
def done(here: Any, mini: Path) -> Callable[..., dict[str, Any]]:
    """Runs `stm compress` on the mini model: the report."""

    def run(*words: str | Path, model: str | Path = mini) -> dict[str, Any]:
        found = here("compress", model, *words, "--json", "--force")
        assert found.code == 0, found.err
        report: dict[str, Any] = json.loads(found.out)
        return report

    return run


def fit_of(folder: str | Path) -> dict[str, Any]:
    fit: dict[str, Any] = json.loads((Path(folder) / "config.json").read_text())["recipe"]["fit"]
    return fit


def refused(run: Any, code: int) -> str:
    assert run.code == code, run.err
    assert run.out == ""
    first: str = run.err.splitlines()[0]
    assert first.startswith("Error: ") and "Traceback" not in run.err
    return first


def test_no_data_is_needed(done: Any) -> None:
    """The embedded costs of vim-digits: drawn pictures, and every number from the digits."""
    report = done(*RATE, "--limit", "20", "--out", "small", model="vim-digits")
    fit = fit_of("small")
    assert (fit["data"], fit["n"], fit["judges"], fit["cut"], fit["tried"]) == ("drawn pictures", 576, 0, "flat", [])
    assert len(fit["sha256"]) == 64 and fit["max_drop"] is None and fit["speedup"] is None
    assert report["eval"]["n"] == 20


def test_a_part_of_the_images_is_fitted_on_and_the_rest_measures(done: Any, many: Path) -> None:
    report = done(*RATE, "--data", many, "--out", "small")
    fit = fit_of("small")
    assert (fit["data"], fit["n"], fit["judges"], fit["seed"]) == ("many", 25, 10, 0)
    assert report["eval"]["n"] == 70 - 25 - 10
    assert report["eval"]["top1"] is None and report["eval"]["agreement"] is not None
    assert report["eval"]["fitted_on"] == 35
    losses = [tried["kl"] for tried in fit["tried"]]
    assert losses == sorted(losses)
    assert {tried["cut"] for tried in fit["tried"]} >= {"flat", "regrouped", "border"}
    assert (fit["cut"], report["protection"]["step_scale"]) == (
        fit["tried"][0]["cut"],
        fit["tried"][0]["step_scale"],
    )


def test_costs_that_cannot_be_kept_are_one_note(
    here: Any, mini: Path, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result is right, and the command succeeds."""
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    run = here("compress", mini, *RATE, "--fit-on", few, "--no-eval", "--out", "small")
    (note,) = [line for line in run.err.splitlines() if "cannot be kept" in line]
    said = f"Note: the costs of the fit cannot be kept in {tmp_path}/file/stm/costs (Not a directory): the next fit"
    assert run.code == 0 and note.startswith(said) and fit_of("small")["data"] == "few"


def test_an_image_that_decides_is_in_no_number(done: Any, many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of what was fitted on and of what was measured share none, and are all of the set together."""
    from stm.commands import compress

    fitted, measured = list[str](), list[str]()
    fit, assess = compress.fitted, compress.assess

    def fitting(dense: Any, images: Any, **options: Any) -> Any:
        fitted.extend(sample.file for part in (*images.sources.values(), images.judges) for sample in part.samples)
        return fit(dense, images, **options)

    def measuring(small: Any, samples: Any, *rest: Any, **options: Any) -> Any:
        measured.extend(sample.file for sample in samples.samples)
        return assess(small, samples, *rest, **options)

    monkeypatch.setattr(compress, "fitted", fitting)
    monkeypatch.setattr(compress, "assess", measuring)
    done(*RATE, "--data", many, "--out", "small")
    assert sorted([*fitted, *measured]) == sorted(path.name for path in many.iterdir())
    first = fit_of("small")
    fitted.clear()
    measured.clear()
    report = done(*RATE, "--data", many, "--limit", "9", "--out", "small")
    assert report["eval"]["n"] == 9 and not set(fitted) & set(measured)
    assert fit_of("small") == first  # a limit is for the images that are left


def test_a_small_set_measures_and_the_fit_takes_drawn_pictures(done: Any, few: Path) -> None:
    report = done(*RATE, "--data", few, "--fit-images", "3", "--out", "small")
    assert (fit_of("small")["data"], fit_of("small")["n"]) == ("drawn pictures", 3)
    assert report["eval"]["n"] == 8
    assert any("few has 8 images, fewer than 64: all of them measure" in note for note in report["notes"])
    assert done(*RATE, "--data", few, "--fit-images", "3", "--limit", "2", "--out", "small")["eval"]["n"] == 2


def test_other_images_to_fit_on(done: Any, many: Path, few: Path) -> None:
    report = done("--saving", "0.3", "--fit-on", few, "--data", many, "--limit", "6", "--out", "small")
    fit = fit_of("small")
    assert (fit["data"], fit["n"], fit["judges"]) == ("few", 5, 3)
    assert report["eval"]["n"] == 6 and report["eval"]["data"] == "many"
    assert report["saving"] == pytest.approx(0.3, abs=0.005)
    assert done("--saving", "0.3", "--fit-on", few, "--fit-images", "7", "--no-eval", "--out", "small")
    assert (fit_of("small")["n"], fit_of("small")["judges"]) == (7, 1)


def test_the_same_images_cannot_do_both(here: Any, many: Path, few: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(few)
    for place in (few, tmp_path / "link"):
        run = here("compress", "--fit-on", place, "--data", few, *RATE, "vim-digits")
        assert "cannot both be fitted on and measure" in refused(run, 2)
    above = tmp_path / "all"
    for name, seed in (("0", 3), ("1", 4)):
        noise(above / name, 4, seed)
    run = here("compress", "vim-digits", "--fit-on", above / "0", "--data", above, *RATE, "--out", "small")
    assert "4 of the images of 0 to fit on are among those of all to measure on" in refused(run, 2)
    assert not (tmp_path / "small").exists()


def test_the_pairs_are_the_recipe(done: Any, here: Any, mini: Path, many: Path, tmp_path: Path) -> None:
    """Without fitting, and byte for byte: only the speed in the card is measured anew."""
    done(*RATE, "--data", many, "--seed", "3", "--out", "small")
    run = here("compress", mini, "--recipe", "small", "--data", many, "--no-cache", "--out", "again", "--json")
    assert run.code == 0, run.err
    first, again = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("small", "again"))
    assert first["schedule"] == again["schedule"] and first["recipe"] == again["recipe"]
    assert (tmp_path / "small/model.safetensors").read_bytes() == (tmp_path / "again/model.safetensors").read_bytes()


def test_a_recipe_that_measured_nothing_gives_the_same_bytes(done: Any, few: Path, tmp_path: Path) -> None:
    done(*RATE, "--fit-on", few, "--no-eval", "--out", "small")
    done("--recipe", "small", "--out", "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "small" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_recipe_takes_no_images_to_fit_on(done: Any, here: Any, mini: Path, few: Path) -> None:
    done(*RATE, "--fit-on", few, "--no-eval", "--out", "small")
    for words in (("--fit-on", few), ("--fit-images", "3")):
        run = here("compress", mini, "--recipe", "small", *words, "--out", "again")
        assert "beside a recipe, whose folder holds the merges" in refused(run, 2)


def test_another_budget_needs_no_second_fit(
    done: Any, here: Any, mini: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that cannot be written is no fault either."""
    from stm import fitting

    computed: list[int] = []
    original = fitting._computed

    def counted(*args: Any) -> Any:
        computed.append(1)
        return original(*args)

    monkeypatch.setattr(fitting, "_computed", counted)
    words = ("--fit-on", few, "--no-eval", "--out", "small")
    done("--saving", "0.2", *words)
    first = fit_of("small")["sha256"]
    done("--saving", "0.4", *words)
    assert len(computed) == 1 and fit_of("small")["sha256"] == first
    done("--saving", "0.4", *words, "--no-cache")
    assert len(computed) == 2
    done("--saving", "0.4", *words, "--seed", "1")  # other images of the set, and other probes
    assert len(computed) == 3
    monkeypatch.setenv("XDG_CACHE_HOME", str(few / "0.png"))
    done("--saving", "0.4", *words)
    assert len(computed) == 4


def test_a_promise_without_a_budget(done: Any, here: Any, mini: Path, right: Path, tmp_path: Path) -> None:
    """All of the half that gives no cost decides how much is saved; the other half stands at the gate."""
    report = done("--data", right, "--max-drop", "60", "--out", "small")
    fit = fit_of("small")
    assert fit["n"] + fit["judges"] == 35 and fit["max_drop"] == 0.6
    assert report["eval"]["n"] == 35 and report["gate"]["passed"]
    assert report["recipe"]["saving"] > 0 and report["recipe"]["rate"] is None
    run = here("compress", mini, "--data", right, "--max-drop", "0.5", "--out", "none")
    assert "no saving keeps the drop within 0.5 points with 95% certainty" in refused(run, 3)
    assert not (tmp_path / "none").exists()


def test_a_promise_that_nothing_can_check(here: Any, mini: Path, many: Path, labelled: Path, few: Path) -> None:
    run = here("compress", mini, "--data", many, "--max-drop", "5")
    assert "max drop needs labels, and many has none" in refused(run, 2)
    run = here("compress", mini, "--data", labelled, "--max-drop", "5")
    assert "has 12 images, expected at least 64" in refused(run, 2)
    run = here("compress", mini, "--data", labelled, "--fit-on", few, "--max-drop", "5")
    assert "few holds 8 images and no labels" in refused(run, 1)


def test_a_speed_that_nothing_reaches(here: Any, mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stm import goals
    from stm.reports import ServedSpeed

    same = ServedSpeed(
        batch_size=1, ms_per_image=1.0, dense_ms_per_image=1.0, gain=1.0, gain_quartiles=(1.0, 1.0), rounds=3
    )
    monkeypatch.setattr(goals, "served_speed", lambda *_, **__: same)
    run = here("compress", mini, "--speedup", "1.5", "--fit-images", "3", "--out", "small")
    assert "no saving makes this model 1.5x as fast here at batch size 1: the largest, 75%" in refused(run, 1)
    assert not (tmp_path / "small").exists()


def test_a_speed_that_was_asked_for_is_shown_without_a_comparison(
    here: Any, mini: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stm import goals
    from stm.commands import compress
    from stm.reports import ServedSpeed

    def speed(dense: object, small: Any, **_: object) -> ServedSpeed:
        gain = 1 + small.schedule.saving(small.config.model.depth)  # as fast as the token-layers are few
        return ServedSpeed(
            batch_size=1, ms_per_image=1.0, dense_ms_per_image=gain, gain=gain, gain_quartiles=(gain, gain), rounds=3
        )

    for module in (goals, compress):
        monkeypatch.setattr(module, "served_speed", speed)
    words = ("compress", mini, "--speedup", "1.2", "--fit-images", "3", "--no-eval", "--force", "--out", "small")
    shown = " ".join(here(*words).out.split())
    assert "asked 1.2x the dense model's speed: saving 0.2" in shown
    assert "1 ms per image, dense 1.2" in shown
    report = json.loads(here(*words, "--json").out)
    assert report["served"]["gain"] >= 1.2 and set(report["reasons"]) == {
        "eval",
        "gate",
        "rounding",
        "kl_gate",
        "feature_change",
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--speedup", "1.5", "--rate", "0.4"), "speedup and rate were given, expected only one"),
        (("--speedup", "1"), "expected a number above 1"),
        (("--speedup", "1.5", "--method", "paper"), "speedup was given, but the schedule border"),
        (("--fit-images", "6", "--method", "paper"), "fit_images was given, but the schedule border looks at no image"),
        (("--fit-images", "2"), "fit images is 2, expected at least 3"),
        (("--saving", "0.9"), "the largest possible saving is 0.75"),
        (("--saving", "0.4", "--sides", "left"), "the largest possible saving is 0.36"),
    ],
)
def test_what_is_refused(here: Any, mini: Path, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    assert said in refused(here("compress", mini, *words, "--out", "small"), 2)
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("saving", ["0.1", "0.36"])
def test_one_side(done: Any, few: Path, saving: str) -> None:
    report = done("--saving", saving, "--sides", "left", "--fit-on", few, "--no-eval", "--out", "small")
    assert report["saving"] == pytest.approx(float(saving), abs=0.01)
    assert report["schedule"]["tokens_per_block"][-1] >= 50 - 22


def test_broken_images_are_named_and_do_not_stop_a_fit(
    done: Any, here: Any, mini: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = noise(tmp_path_factory.mktemp("broken") / "broken", 70, seed=6)
    for number in (0, 1, 2, 3):
        (folder / f"{number}.png").write_text("no image")
    report = done(*RATE, "--data", folder, "--out", "small")
    assert report["eval"]["n"] + report["eval"]["failed"] == 35
    for path in folder.iterdir():
        path.write_text("no image")
    assert "none of the images for the fit could be read" in refused(here("compress", mini, "--data", folder), 1)
    one = noise(tmp_path_factory.mktemp("one") / "one", 1)
    assert "one has 1 image, expected at least 2" in refused(here("compress", mini, "--fit-on", one), 1)
