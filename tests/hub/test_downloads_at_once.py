"""Two processes that download one file or one set: one does, the other waits for it, and nobody waits for ever."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stm.hub.aliases import ARCHIVES
from tests.hang import HANG
from tests.hub.client import WEIGHTS, Client, gets, refused
from tests.hub.conftest import MINI, clean_environment
from tests.hub.server import Fault, Hub, Repo
from tests.hub.test_samples import PICTURES, archive, parquet

V2 = ARCHIVES["imagenet-v2"]


def until(hub: Hub, method: str, path: str, number: int = 1) -> None:
    """Wait until so many requests of this kind have come."""
    for _ in range(int(HANG / 0.01)):
        if sum(seen.method == method and seen.path.endswith(path) for seen in hub.seen) >= number:
            return
        time.sleep(0.01)
    raise AssertionError(f"{method} {path} did not come")


@pytest.fixture
def first(hub: Hub, client: Client) -> tuple[subprocess.Popen[str], threading.Event]:
    """A process in the middle of its download, and what lets it go on."""
    going_on = threading.Event()
    hub.faults = [Fault("GET", "vim.pth", cut=70_000, hold=going_on)]
    process = client.begin("fetch", "owner/vim", "vim.pth")
    until(hub, "GET", "vim.pth")
    return process, going_on


def test_the_other_waits_for_it(hub: Hub, client: Client, first: tuple[subprocess.Popen[str], threading.Event]) -> None:
    one, going_on = first
    other = client.begin("fetch", "owner/vim", "vim.pth")
    until(hub, "HEAD", "vim.pth", 2)
    going_on.set()
    results = [client.end(each)["result"] for each in (one, other)]
    assert results[0] == results[1] and Path(results[0]["path"]).read_bytes() == WEIGHTS
    assert [headers.get("range") for headers in gets(hub, "vim.pth")] == [None, "bytes=65536-"]  # of one download


def test_the_other_goes_on_if_it_is_killed(
    hub: Hub, client: Client, first: tuple[subprocess.Popen[str], threading.Event]
) -> None:
    one, going_on = first
    other = client.begin("fetch", "owner/vim", "vim.pth")
    until(hub, "HEAD", "vim.pth", 2)
    one.kill()
    one.communicate()
    assert Path(client.end(other)["result"]["path"]).read_bytes() == WEIGHTS
    going_on.set()


def test_the_other_does_not_wait_for_ever(client: Client, first: tuple[subprocess.Popen[str], threading.Event]) -> None:
    one, going_on = first
    out = client("fetch", "owner/vim", "vim.pth", patience=0.5)
    hint = refused(out, "downloads vim.pth of owner/vim too, and has received nothing for")
    assert out["message"].startswith((f"process {one.pid} ", "another process ")) and out["stderr"] == ""
    assert ".locks" in hint
    going_on.set()
    assert Path(client.end(one)["result"]["path"]).read_bytes() == WEIGHTS


@pytest.mark.slow(seconds=40)
@pytest.mark.parametrize(
    ("data", "file", "killed"), [("hf:owner/set:val", "val.parquet", True), ("imagenet-v2", V2.file, False)]
)
def test_two_evaluations_that_download_one_set(
    hub: Hub, home: Path, tmp_path: Path, data: str, file: str, killed: bool
) -> None:
    names = [f"imagenetv2-matched-frequency-format-val/{index}/{name}.jpeg" for index in range(10) for name in "ab"]
    hub.repos["datasets/owner/set"] = Repo({"val.parquet": parquet(PICTURES)})
    hub.repos[f"datasets/{V2.repo}"] = Repo(
        {V2.file: archive({name: PICTURES[number % 14][0] for number, name in enumerate(names)})}
    )
    going_on = threading.Event()
    hub.faults = [Fault("GET", file, cut=2000, hold=going_on)]
    command = [sys.executable, "-m", "stm_cli", "eval", str(MINI), "--data", data, "--workers", "0", "--json"]
    environment = clean_environment(**hub.environment(home))

    def begin() -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, **pipes, text=True, cwd=tmp_path, env=environment)

    one = begin()
    until(hub, "GET", file)
    other = begin()
    until(hub, "HEAD", file, 2)
    if killed:
        one.kill()
        one.communicate()
    going_on.set()
    reports = []
    for process in [other] if killed else [one, other]:
        out, err = process.communicate(timeout=HANG)
        assert process.returncode == 0, err
        reports.append(json.loads(out))
    assert {report["n"] for report in reports} == {14 if file == "val.parquet" else 20}
    assert len({report["top1"] for report in reports}) == 1
    assert not list((home / "assets").rglob("*.incomplete")) and not list(tmp_path.iterdir())
