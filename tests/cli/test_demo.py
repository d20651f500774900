"""`make demo`, without the install: what it writes, and its one screen."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stm.commands import compress
from stm.options import MergeOptions
from tests.hang import HANG

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow(seconds=60)
def test_the_demo_writes_the_folder_and_one_screen(tmp_path: Path) -> None:
    out = tmp_path / "vim-digits-stm40"
    # an earlier result of our own, which the demo replaces
    compress.compress("vim-digits", merge=MergeOptions(rate=0.1), eval=False, out=out)
    before = (out / "config.json").read_bytes()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "80", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    demo = [sys.executable, ROOT / "tools" / "demo.py"]
    run = subprocess.run(demo, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=HANG)
    assert run.returncode == 0, run.stderr
    assert os.listdir(tmp_path) == [out.name]
    assert (out / "config.json").read_bytes() != before
    lines = run.stdout.strip().splitlines()
    assert len(lines) <= 20 and max(map(len, lines)) <= 80
    assert [line.split("  ")[0] for line in lines[1:4]] == ["dense", "--method stm", "--method paper"]
    assert "…" not in run.stdout, "a column is cut off"
    assert "digits are not photographs" in run.stdout.replace("\n", " ").replace("  ", " ")
    assert all(" vim-digits" in line for line in lines[-3:])
