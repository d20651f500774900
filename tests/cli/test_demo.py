"""`make demo`, without the install: what it writes, and its one screen."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_demo_writes_the_folder_and_one_screen_twice(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "80", "HF_HUB_OFFLINE": "1"}
    for _ in range(2):  # the second run replaces what the first one wrote
        demo = [sys.executable, ROOT / "tools" / "demo.py"]
        run = subprocess.run(demo, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=170)
        assert run.returncode == 0, run.stderr
        assert os.listdir(tmp_path) == ["vim-digits-stm40"]
    lines = run.stdout.strip().splitlines()
    assert len(lines) <= 20 and max(map(len, lines)) <= 80
    heads = [line.split("  ")[0] for line in lines]
    assert [head for head in heads if head in ("dense", "--method stm", "--method paper")] == ["dense", "--method stm", "--method paper"]
    assert "easy on merging" in run.stdout
    assert all(" vim-digits" in line for line in lines[-3:])
