"""A sweep's cells: which they are, that each is stored when it is finished, and that a run that was stopped gives the
same table."""

import csv
import errno
import io
import json
from pathlib import Path
from typing import Any

import pytest

import stm
from stm.artifact import atomic
from stm.bake import bake
from stm.commands import sweep
from stm.config import Preprocess
from stm.data.fit_images import pictures
from stm.errors import DataError, UsageError
from stm.findings import SweepReport, SweepRow
from stm.fitting import Fitting, fit
from stm.measure import sweep as module
from stm.measure.sweep import CURVES, Cell, Grid, cells, deciding, planned
from stm.measure.sweep_file import CELLS, IDENTITY, CellFile, SweepIdentity, check_folder
from stm.options import EvalOptions, FitOptions, MergeOptions, ModelOptions
from tests.pictures import labelled

MINI = Path(__file__).parents[1] / "golden" / "dense-mini" / "vim_mini_stride8.pth"
SIBLING = MINI.with_name("vim_mini.pth")
GRID = {"rates": (0.2, 0.4), "sides": ("both", "left"), "peers": ("rmeeto",)}


@pytest.fixture(scope="module", autouse=True)
def _needs_matplotlib() -> None:
    pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def dense() -> stm.ViM:
    return stm.load_checkpoint(MINI, image_size=64, device="cpu")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return labelled(tmp_path / "images", [f"{letter}.png,{number}" for number, letter in enumerate("abcde")])


@pytest.fixture
def no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A figure takes longer than the sweep of a mini model."""
    monkeypatch.setattr(sweep.plots, "save", lambda figure, folder, name, write: None)


def swept(images: Path, out: Path, **options: Any) -> SweepReport:
    """Options of the grid and the images by name; `image_size`, `also` and `on_progress` as `sweep` calls them."""
    chosen = {"data": images, "workers": 0, "batch_size": 2, "limit": 100, "fit_images": 3} | GRID | options
    source = ModelOptions(image_size=chosen.pop("image_size", 64), device="cpu")
    grid = Grid(**{name: chosen.pop(name) for name in Grid.__dataclass_fields__ if name in chosen})
    fit = FitOptions(**{name: chosen.pop(name) for name in FitOptions.__dataclass_fields__ if name in chosen})
    shown = EvalOptions(**{name: chosen.pop(name) for name in EvalOptions.__dataclass_fields__ if name in chosen})
    return sweep.sweep(str(MINI), source, shown, grid, fit, out=out, **chosen)


def rows_of(report: SweepReport) -> list[dict[str, Any]]:
    """The table without what a clock said."""
    return [{**vars(row), "images_per_second": None} for row in report.rows]


def test_the_default_grid_is_the_papers_table_3() -> None:
    found = cells(Grid())
    assert len(found) == 12 and len(set(map(str, found))) == 12
    assert {(cell.rate, cell.sides) for cell in found} == {
        (r, s) for r in (0.15, 0.2, 0.3, 0.4) for s in ("both", "left", "right")
    }
    assert {(cell.schedule, cell.weights, cell.step_scale, cell.conv) for cell in found} == {
        ("fitted", "size", 0.5, "span")
    }
    assert {(c.schedule, c.weights, c.step_scale, c.conv) for c in cells(Grid(method="paper"))} == {
        ("border", "hsp", 0.0, "plain")
    }


def test_every_axis_is_crossed_and_r_is_for_gradual_orders_alone() -> None:
    axes: dict[str, Any] = {
        "rates": (0.2,),
        "sides": ("both",),
        "schedules": ("fitted", "staged", "sweep"),
        "weights": ("size", "mean"),
    }
    found = cells(Grid(**axes, step_scales=(0, 0.5), convs=("plain", "span"), tokens_per_side=(1, 2)))
    assert len(found) == 2 * 2 * 2 * (1 + 1 + 2)
    assert {cell.tokens_per_side for cell in found if cell.schedule in ("fitted", "staged")} == {None}
    assert {cell.tokens_per_side for cell in found if cell.schedule == "sweep"} == {1, 2}


def test_what_is_not_known_is_refused(dense: stm.ViM) -> None:
    for axes, message in (
        ({"peers": ("rmeto",)}, "unknown peer 'rmeto'"),
        ({"convs": ("wide",)}, "unknown conv 'wide'"),
        ({"method": "ours"}, "unknown method 'ours'"),
        ({"rates": ()}, "a rate and a side"),
    ):
        with pytest.raises(UsageError, match=message):
            Grid(**axes)
    with pytest.raises(UsageError, match="already compressed"):
        planned(stm.compress(dense, method="staged", saving=0.2), Grid(), {})


@pytest.fixture(scope="module")
def fitting(dense: stm.ViM) -> Fitting:
    return fit(dense, pictures(dense.config, n=3), keep=False)


def test_one_fit_is_for_the_whole_grid_and_none_for_a_grid_without(dense: stm.ViM, fitting: Fitting) -> None:
    made: list[Fitting] = []

    def once() -> Fitting:
        made.append(fitting)
        return fitting

    grid = Grid(rates=(0.2, 0.4), schedules=("fitted", "staged", "border"), step_scales=(0.5, 1), peers=())
    found = planned(dense, grid, {}, fitting=once)
    assert len(made) == 1 and len(found) == 1 + 2 * 3 * 2 * 3
    for each in found[1:]:
        assert each.model is not None and each.model.config.protection.step_scale == each.cell.step_scale
        assert (each.known["cut"] == "flat") == (each.cell.schedule == "fitted")
    assert deciding(found).recipe.fit.n == 3
    others = planned(dense, Grid(rates=(0.2,), schedules=("staged", "border"), peers=("paper",)), {}, fitting=once)
    assert len(made) == 1 and deciding(others) == dense.config
    with pytest.raises(UsageError, match="no cell of the grid can be measured; the last one: rate is 40"):
        planned(dense, Grid(rates=(40,)), {}, fitting=once)
    with pytest.raises(UsageError, match="no cell of the grid can be measured; the last one: step_scale is 9"):
        planned(dense, Grid(step_scales=(9,)), {}, fitting=once)
    assert len(made) == 1, "what can be refused is refused before the fit"


def test_a_cell_that_cannot_be_had_is_said_and_left_out(dense: stm.ViM, fitting: Fitting) -> None:
    grid = Grid(rates=(0.2, 1.5), sides=("both",), peers=CURVES)
    found = planned(dense, grid, {}, fitting=lambda: fitting)
    refused = [each for each in found if each.refused is not None]
    assert len(refused) == 1 and refused[0].cell.rate == 1.5 and "rate is 1.5" in (refused[0].refused or "")
    assert [each.cell.method for each in found if each.cell.rate == 0.2] == ["stm", *CURVES]


def test_peers_save_what_the_first_cell_of_a_rate_does(dense: stm.ViM, fitting: Fitting) -> None:
    found = {str(each.cell): each.known for each in planned(dense, Grid(**GRID), {}, fitting=lambda: fitting)}
    ours = found[str(cells(Grid(**GRID))[0])]["flops"].honest_saving
    peer = found[str(Cell(method="rmeeto", rate=0.2))]["flops"].honest_saving
    assert abs(ours - peer) < 0.02  # 50 tokens: half a point is less than a token


def test_the_folder_holds_table_figure_and_cells(images: Path, tmp_path: Path) -> None:
    report = swept(images, tmp_path / "out", also=[str(SIBLING)], limit=3)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {CELLS, IDENTITY, *sweep.SWEPT}
    assert [(row.method, row.rate, row.sides) for row in report.rows] == [
        ("dense", None, None),
        (str(SIBLING), None, None),
        *(("stm", rate, sides) for rate in (0.2, 0.4) for sides in ("both", "left")),
        ("rmeeto", 0.2, None),
        ("rmeeto", 0.4, None),
    ]
    assert report.n == 3 and report.resumed == 0 and report.rows[1].sibling
    assert json.loads((tmp_path / "out" / "sweep.json").read_text()) == json.loads(report.to_json())
    lines = list(csv.DictReader(io.StringIO((tmp_path / "out" / "sweep.csv").read_text())))
    assert (
        len(lines) == len(report.rows)
        and (lines[2]["schedule"], lines[2]["cut"]) == ("fitted", "flat")
        and lines[-1]["flops_paper"]
    )


@pytest.mark.usefixtures("no_figure")
def test_a_row_is_what_compress_and_eval_find(images: Path, tmp_path: Path, dense: stm.ViM, fitting: Fitting) -> None:
    report = swept(images, tmp_path / "out")
    row = next(row for row in report.rows if (row.method, row.rate, row.sides) == ("stm", 0.4, "left"))
    small = bake(dense, MergeOptions(rate=0.4, sides="left"), fitting=fitting)
    alone = stm.evaluate(small, images, reference=dense, batch_size=2)
    for name in ("n", "top1", "top5", "agreement", "kl", "drop", "drop_ci", "mcnemar_p"):
        assert getattr(row, name) == getattr(alone, name)
    assert row.tokens_per_block == small.schedule.tokens_per_block(6)


@pytest.mark.usefixtures("no_figure")
@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_stopped_sweep_goes_on_and_gives_the_same_table(
    after: int, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = swept(images, tmp_path / "whole")
    append = module.CellFile.append
    finished: list[str] = []

    def stop(self: Any, key: str, row: SweepRow) -> None:
        if len(finished) == after:
            raise KeyboardInterrupt
        finished.append(key)
        append(self, key, row)

    monkeypatch.setattr(module.CellFile, "append", stop)
    with pytest.raises(KeyboardInterrupt):
        swept(images, tmp_path / "out")
    monkeypatch.undo()
    with (tmp_path / "out" / CELLS).open("ab") as stream:
        stream.write(b'{"key": "half a li')  # what a kill leaves
    again = swept(images, tmp_path / "out")
    assert again.resumed == after
    assert rows_of(again) == rows_of(whole)
    assert [row.images_per_second for row in swept(images, tmp_path / "out").rows] == [
        row.images_per_second for row in again.rows
    ]


def test_one_run_at_a_time_has_a_folder(tmp_path: Path) -> None:
    identity = SweepIdentity(
        model="m", data="d", preprocessing=Preprocess(), limit=None, seed=0, batch_size=2, environment={}
    )
    file = CellFile(tmp_path, identity)
    for ask in (lambda: CellFile(tmp_path, identity), lambda: check_folder(tmp_path)):
        with pytest.raises(DataError, match=rf"{CELLS} is in use: "):
            ask()
    file.close()
    CellFile(tmp_path, identity).close()
    (tmp_path / f".{IDENTITY}.stm-tmp-0123abcd").write_text("half")  # a kill leaves it
    check_folder(tmp_path)
    (tmp_path / ".other.stm-tmp-0123abcd").write_text("half")
    with pytest.raises(UsageError, match=r"holds \.other"):
        check_folder(tmp_path)


def test_a_cell_that_does_not_reach_the_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = SweepIdentity(
        model="m", data="d", preprocessing=Preprocess(), limit=None, seed=0, batch_size=2, environment={}
    )
    file = CellFile(tmp_path / "new", identity)

    def fail(path: Path) -> None:
        assert path.name == CELLS
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(atomic, "sync", fail)
    with pytest.raises(DataError, match=rf"{CELLS}.*Input/output error"):
        file.append("0.2 both", identity)
    assert file.done == {}
    file.close()


@pytest.mark.usefixtures("no_figure")
def test_a_larger_grid_uses_what_is_there(images: Path, tmp_path: Path) -> None:
    first = swept(images, tmp_path / "out")
    more = swept(images, tmp_path / "out", weights=("size", "mean"))
    assert more.resumed == len(first.rows) and len(more.rows) == len(first.rows) + 4


@pytest.mark.usefixtures("no_figure")
def test_the_cells_of_a_folder_have_one_fit(images: Path, tmp_path: Path) -> None:
    """A folder without fitted cells takes the first fit that comes, and other cells may join them at any time."""
    out = tmp_path / "out"
    staged = swept(images, out, schedules=("staged",))
    assert staged.fit is None
    both = swept(images, out, schedules=("staged", "fitted"))
    assert both.fit is not None and (both.fit.n, both.fit.judges, both.fitted_on) == (3, 0, 0)
    assert both.resumed == len(staged.rows)
    for other in ({"fit_images": 6}, {"fit_on": images, "fit_images": 2, "data": None}):
        with pytest.raises(DataError, match=r"cells of another run: .*fit differ"):
            swept(images, out, **other)
    assert swept(images, out, schedules=("staged",), fit_images=6).resumed == len(staged.rows)
    assert swept(images, out, schedules=("staged", "fitted")).resumed == len(both.rows)


@pytest.mark.usefixtures("no_figure")
def test_a_folder_of_something_else_is_refused(images: Path, tmp_path: Path) -> None:
    swept(images, tmp_path / "out")
    with pytest.raises(DataError, match="cells of another run: data, limit differ"):
        swept(images, tmp_path / "out", limit=2)
    with pytest.raises(DataError, match="cells of another run: seed, fit differ"):
        swept(images, tmp_path / "out", seed=1)
    with (tmp_path / "out" / CELLS).open("ab") as stream:
        stream.write(b"{}\n")
    with pytest.raises(DataError, match=r"cells.jsonl: line 8 is not a cell"):
        swept(images, tmp_path / "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds notes\.txt"):
        swept(images, tmp_path / "other")
    with pytest.raises(UsageError, match="is a file"):
        check_folder(tmp_path / "other" / "notes.txt")
    for folder, reason in ((Path("/proc/x"), ""), (tmp_path / ("x" * 300), "File name too long")):
        with pytest.raises(UsageError, match=f"{folder} cannot be written: {reason}") as caught:
            check_folder(folder)
        assert caught.value.hint == "give another folder: --out DIR"
    check_folder(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()


def test_without_labels_the_curve_is_agreement(tmp_path: Path) -> None:
    report = sweep.sweep(
        str(MINI),
        ModelOptions(image_size=64, device="cpu"),
        EvalOptions(limit=2),
        Grid(**GRID | {"sides": ("both",)}),
        FitOptions(fit_images=3),
        out=tmp_path / "out",
    )
    assert all(row.top1 is None and row.agreement is not None for row in report.rows)
    assert (tmp_path / "out" / "sweep.png").stat().st_size > 1000
