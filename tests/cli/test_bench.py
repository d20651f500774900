"""`stm bench` from end to end: what is in its report, and that the parts of a report agree."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from stm.bench import rivals
from stm.commands import bench as bench_command
from stm.errors import UsageError
from stm.findings import BenchReport, BenchRow
from stm.options import ModelOptions
from stm.reports import Environment, Flops
from stm_cli import bench


def test_bench(here, mini: Path) -> None:
    run = here(
        "bench",
        mini,
        "--batch-sizes",
        "1,3",
        "--rounds",
        "2",
        "--against",
        "vit",
        "--optimize",
        "--method",
        "staged",
        "--stages",
        "3",
        "--json",
    )
    assert run.code == 0, run.err
    report = json.loads(run.out)
    rows = {(row["variant"], row["batch_size"]): row for row in report["rows"]}
    names = ["dense", "dense, optimized", "compressed", "compressed, optimized", "ViT of width 32, PyTorch float32"]
    assert list(rows) == [(name, size) for size in (1, 3) for name in names]
    for row in rows.values():
        assert row["images_per_second"] == pytest.approx(1000 / row["ms_per_image"])
        assert row["ms_per_image"] > 0 and row["ms_iqr"] >= 0 and row["peak_bytes"] > 0 and row["rounds"] == 2
        assert (row["gemm_ms"] is None) == (row["variant"] not in ("dense", "compressed"))
        assert set(row["flops"]) == {"paper", "honest", "paper_saving", "honest_saving"}
    dense, small = rows["dense", 1], rows["compressed", 1]
    assert dense["gain"] == 1 and report["wall_clock_gain"] == small["gain"] and report["gemm_ms"] == dense["gemm_ms"]
    assert report["flops_gain"] == dense["flops"]["honest"] / small["flops"]["honest"]
    assert report["tokens_per_block"] == [50, 50, 50, 26, 26, 26]
    assert report["reasons"] == {} and list(report["runtimes"]) == ["PyTorch"]


def test_bench_of_a_folder_is_against_the_dense_model_in_it(here, mini: Path) -> None:
    here("compress", mini, "--method", "staged", "--stages", "2", "--no-eval", "--quiet", "--out", "small")
    run = here("bench", "small", "--rounds", "1", "--json")
    report = json.loads(run.out)
    assert [row["variant"] for row in report["rows"]] == ["dense", "compressed"]
    assert report["tokens_per_block"] == [50, 50, 26, 26, 26, 26]
    refused = here("bench", "small", "--rate", "0.2")
    assert refused.code == 2 and "small is already compressed" in refused.err


def test_bench_of_a_rate_of_nothing_has_no_gain(here, mini: Path) -> None:
    report = json.loads(here("bench", mini, "--rate", "0", "--rounds", "1", "--json").out)
    assert report["wall_clock_gain"] is None and report["reasons"]["wall_clock_gain"] == "nothing is merged"
    assert here("bench", mini, "--rate", "0", "--rounds", "1", "--quiet").out == ""


def test_what_bench_refuses_before_anything_is_compressed(monkeypatch: pytest.MonkeyPatch, mini: Path) -> None:
    monkeypatch.setattr(bench_command, "_pair", lambda *_: pytest.fail("it was compressed first"))
    for options in ({"batch_sizes": ()}, {"batch_sizes": (0,)}, {"rounds": 0}, {"threads": 0}, {"against": ("rnn",)}):
        with pytest.raises(UsageError):
            bench_command.bench(str(mini), ModelOptions(device="cpu"), **options)


def test_a_runtime_that_is_not_installed_is_refused_before_anything_is_compressed(
    monkeypatch: pytest.MonkeyPatch, mini: Path
) -> None:
    monkeypatch.setattr(rivals, "find_spec", lambda name: None if name == "openvino" else object())
    monkeypatch.setattr(bench_command, "_pair", lambda *_: pytest.fail("it was compressed first"))
    with pytest.raises(UsageError, match=r"OpenVINO is not measured: openvino not installed") as refused:
        bench_command.bench(str(mini), ModelOptions(device="cpu"), against=("openvino",))
    assert 'pip install ".[bench]"' in str(refused.value)


ENVIRONMENT = Environment(
    stm="0.1.0", torch="2.13.0", device="cpu", name="A CPU", dtype="float32", backend="native", threads=2
)
FLOPS = Flops(paper=1449113088, honest=1777000000, paper_saving=0.0, honest_saving=0.0)
ROW = BenchRow(
    variant="dense",
    batch_size=8,
    ms_per_image=12.345,
    ms_iqr=0.5,
    images_per_second=81.0,
    peak_bytes=3_295_712,
    flops=FLOPS,
    gain=1.0,
    gemm_ms=10.0,
    gemm_ratio=1.2,
    rounds=10,
)


def test_the_screen_of_bench(screen_lines, narrow) -> None:
    small = replace(
        ROW,
        variant="compressed, optimized",
        ms_per_image=1234.5,
        gain=1.3,
        peak_bytes=None,
        gemm_ms=None,
        gemm_ratio=None,
    )
    report = BenchReport(
        command="bench",
        model="vim-ti",
        environment=ENVIRONMENT,
        random_weights=True,
        image_size=224,
        tokens_per_block=(197,) * 13 + (99,) * 11,
        rows=(ROW, small),
        flops_gain=1.275,
        wall_clock_gain=1.3,
        gemm_ms=10.0,
        runtimes={"ONNX Runtime": "1.32.0"},
    )
    assert screen_lines(bench, report) == [
        "vim-ti",
        "                       batch  ms/image    +-  images/s   gain      peak    FLOPs",
        "dense                      8     12.35  0.25      81.0  1.00x  3.296 MB  1.777 G",
        "compressed, optimized      8   1234.50  0.25      81.0  1.30x         -  1.777 G",
        "gain      1.300x by the clock, 1.275x by FLOPs",
        "tokens    █████████████▄▄▄▄▄▄▄▄▄▄▄  197 x 13, 99 x 11",
        "on        A CPU, 2 threads, float32, backend native, torch 2.13.0",
        "rivals    ONNX Runtime 1.32.0",
        "ms/image  the median of 10 rounds, +- half the distance between the quartiles",
        "FLOPs     multiply-accumulates, all that is computed; stm info also has the",
        "          paper's count",
        "products  10.00 ms an image: the dense model's matrix products alone",
    ]
    narrow(bench, report)
    of_int8 = screen_lines(bench, replace(report, environment=replace(ENVIRONMENT, dtype="int8")))
    assert of_int8[-1] == "products  10.00 ms an image: the dense model's matrix products alone, in float32"
