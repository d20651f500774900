"""Real processes: killed at moments all over what they write, and several that write one place at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import stm
from tests.hang import HANG
from tests.pictures import labelled

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "tests" / "golden" / "dense-mini" / "vim_mini_stride8.pth"

# One process imports torch, and its children do the work. `left` is what is there but the inputs, TMPDIR included.
PRELUDE = """
import os, shutil, signal, sys, time
from pathlib import Path
import torch
from stm import loading
from stm.artifact import atomic
from stm.artifact import folder as artifact
from stm.commands import compress, eval, export, report, sweep
from stm.data.unpack import unpack
from stm.errors import StmError
from stm.measure.sweep import Grid
from stm.options import EvalOptions, FitOptions, MergeOptions, ModelOptions

torch.set_num_threads(1)
MINI = {"model": "mini.pth", "source": ModelOptions(image_size=64, device="cpu"), "out": "out"}
STAGED = MergeOptions(method="staged")
CPU, IMAGES = ModelOptions(device="cpu"), EvalOptions(data="images", workers=0, batch_size=1)
JOBS = {
    "export": lambda force: export.export(**MINI, force=force),
    "folder": lambda force: export.export(**MINI, format="folder", force=force),
    "compress": lambda force: compress.compress(**MINI, merge=STAGED, eval=False, force=force),
    "report": lambda force: report.report("small", CPU, IMAGES, out="out", force=force),
}
INPUTS = {"tmp", "mini.pth", "images", "small"}

def left():
    return {path.name for path in Path().iterdir()} - INPUTS | {f"tmp/{path.name}" for path in Path("tmp").iterdir()}

def clear():
    for name in left():
        shutil.rmtree(name) if os.path.isdir(name) else os.unlink(name)

for job in JOBS.values():  # what a job imports and keeps is there before the first fork, not made by every child
    job(True)
    clear()

def child(job):
    number = os.fork()
    if number:
        return number
    try:
        job()
        code = 0
    except StmError as error:
        Path(f"tmp/said-{os.getpid()}").write_text(error.message)
        code = error.exit_code
    except BaseException as error:
        Path(f"tmp/said-{os.getpid()}").write_text(repr(error))
        code = 99
    os._exit(code)

def together(number, job):
    "The exit codes of so many children that begin at once, and what they said."
    def begin():
        Path(f"tmp/ready-{os.getpid()}").touch()
        while len(list(Path("tmp").glob("ready-*"))) < number:
            time.sleep(0.0005)
        job()
    children = [child(begin) for _ in range(number)]
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(each, 0)[1]) for each in children)
    said = [path.read_text() for path in Path("tmp").glob("said-*")]
    for path in [*Path("tmp").glob("said-*"), *Path("tmp").glob("ready-*")]:
        path.unlink()
    return codes, said
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "mini.pth").symlink_to(MINI)
    labelled(tmp_path / "images", [f"{letter}.png,{number}" for number, letter in enumerate("abcde")])
    stm.compress(stm.load_checkpoint(MINI, image_size=64, device="cpu"), rate=0.4, method="staged").save_pretrained(
        tmp_path / "small"
    )
    return tmp_path


def run(here: Path, script: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(here / "tmp")}
    command = [sys.executable, "-c", PRELUDE + script]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_kill_at_any_write_leaves_nothing_that_the_next_run_does_not_clear(here: Path) -> None:
    """SIGKILL before the first call that changes the disk, then before the second, until none is left."""
    script = """
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod"}

def killed_at(moment, job):
    seen = 0
    def audit(event, arguments):
        nonlocal seen
        flags = arguments[2] if event == "open" and isinstance(arguments[2], int) else 0
        if event in CHANGES or flags & (os.O_WRONLY | os.O_RDWR):
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)
    def watched():
        sys.addaudithook(audit)
        job(True)
    code = os.waitstatus_to_exitcode(os.waitpid(child(watched), 0)[1])
    assert code in (0, -signal.SIGKILL), code
    return code != 0

for name in ("export", "report", "compress"):
    moment, drafts = 1, 0
    while killed_at(moment, JOBS[name]):
        drafts += any(".stm-tmp-" in each for each in left())
        assert not any(each.startswith("tmp/") for each in left()), (name, moment, left())
        moment += 1
    assert left() == {"out"}, (name, left())
    assert moment > 2 and drafts, (name, moment, drafts)
    for again in (1, moment // 2, moment - 1):  # and without force, what is there refused before anything is written
        killed_at(again, JOBS[name])
        with_force = together(1, lambda: JOBS[name](True))
        assert with_force == ([0], []) and left() == {"out"}, (name, again, with_force, left())
    clear()
"""
    run(here, script)


def test_a_kill_at_any_time(here: Path) -> None:
    """By the clock, while a process writes again and again."""
    script = """
import random
random.seed(0)
for name in ("export", "report"):
    killed = 0
    for _ in range(5):
        def forever():
            while True:
                JOBS[name](True)
        writer = child(forever)
        while not left():
            time.sleep(0.0005)
        time.sleep(random.uniform(0, 0.05))
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        killed += left() != {"out"}
        assert together(1, lambda: JOBS[name](True)) == ([0], [])
        assert left() == {"out"}, (name, left())
        clear()
"""
    run(here, script)


def test_several_into_one_place(here: Path) -> None:
    """With force all succeed. Without it one does, and the others say that the place is taken."""
    script = """
def again(job):
    for _ in range(2):
        job(True)

for name, job in JOBS.items():
    assert together(4, lambda: again(job)) == ([0] * 4, []) , name
    assert left() == {"out"}, (name, left())
    clear()
    codes, said = together(8, lambda: job(False))
    assert codes == [0, *[2] * 7] and set(said) == {"out already exists"}, (name, codes, said)
    assert left() == {"out"}, (name, left())
    if Path("out").is_dir():
        loading.load("out", device="cpu")
    clear()
"""
    run(here, script)


def test_several_evaluations_with_one_file_of_records(here: Path) -> None:
    """One holds the file; the others say who does, and the file is whole and resumes. A killed holder holds nothing."""
    script = """
def evaluate(slowly=lambda progress: None):
    eval.evaluate("small", CPU, IMAGES, records="r.csv", on_progress=slowly)

codes, said = together(4, lambda: evaluate(lambda progress: time.sleep(0.2)))
assert codes == [0, 1, 1, 1], (codes, said)
assert all(each.startswith("r.csv is in use: ") and each.endswith(" is writing to it") for each in said), said
rows = Path("r.csv").read_text().splitlines()[1:]
assert [row.partition(",")[0] for row in rows] == [f"{name}.png" for name in "abcde"]
assert together(1, evaluate) == ([0], []) and left() == {"r.csv", "r.csv.json"}, left()
clear()
holder = child(lambda: evaluate(lambda progress: time.sleep(60) if progress.done == 2 else None))
while not os.path.exists("r.csv") or len(Path("r.csv").read_text().splitlines()) < 3:
    time.sleep(0.001)
codes, said = together(1, evaluate)
assert codes == [1] and (f"process {holder}" in said[0] or not os.path.exists("/proc/locks")), (codes, said)
os.kill(holder, signal.SIGKILL)
os.waitpid(holder, 0)
assert together(1, evaluate) == ([0], [])
assert len(Path("r.csv").read_text().splitlines()) == 6 and left() == {"r.csv", "r.csv.json"}, left()
"""
    run(here, script)


def test_two_sweeps_of_one_folder(here: Path) -> None:
    """One measures; the other says who does, and then goes on from what is there, as after a kill of the first."""
    script = """
GRID = Grid(rates=(0.2,), sides=("both",), schedules=("staged",), peers=())
def grow(slowly=lambda progress: None):
    sweep.sweep(MINI["model"], MINI["source"], IMAGES, GRID, out="out", on_progress=slowly)

grow()  # what it imports is there for all
clear()
codes, said = together(2, lambda: grow(lambda progress: time.sleep(0.2)))
assert codes == [0, 1] and len(said) == 1 and " is in use: " in said[0], (codes, said)
assert together(1, grow) == ([0], []) and left() == {"out"}
cells = Path("out/cells.jsonl").read_text()
clear()
holder = child(lambda: grow(lambda progress: time.sleep(60) if Path("out/cells.jsonl").stat().st_size else None))
while not os.path.exists("out/cells.jsonl") or not Path("out/cells.jsonl").stat().st_size:
    time.sleep(0.001)
codes, said = together(1, grow)
assert codes == [1] and "out/cells.jsonl is in use: " in said[0], (codes, said)
os.kill(holder, signal.SIGKILL)
os.waitpid(holder, 0)
assert together(1, grow) == ([0], [])
assert Path("out/cells.jsonl").read_text().count("key") == cells.count("key") and left() == {"out"}
"""
    run(here, script)


def test_two_fits_on_one_cache(here: Path) -> None:
    """Both succeed, agree, and leave one entry."""
    script = """
os.environ["XDG_CACHE_HOME"] = "cache"
def fit():
    out = f"out-{os.getpid()}"
    few = FitOptions(fit_on="images", fit_images=4)
    compress.compress(**MINI | {"out": out}, merge=MergeOptions(), fit=few, eval=False)

for kept in (False, True):
    assert together(2, fit) == ([0, 0], [])
    names = [each.name for each in Path("cache").rglob("*") if each.is_file()]
    assert len(names) == 1 and ".stm-tmp-" not in names[0], names
    one, other = Path().glob("out-*")
    for name in ("model.safetensors", "config.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    for each in (one, other):
        shutil.rmtree(each)
"""
    run(here, script)


def test_two_that_unpack_one_set_and_one_that_is_killed(here: Path) -> None:
    script = """
import tarfile
with tarfile.open("tmp/set.tar.gz", "w:gz") as tar:
    tar.add("images", recursive=True)

def unpacked():
    folder = unpack(Path("tmp/set.tar.gz"), Path("set"))
    assert len(list(folder.rglob("*.png"))) == 5

assert together(2, unpacked) == ([0, 0], [])
shutil.rmtree("set")
killed = child(lambda: unpack(Path("tmp/set.tar.gz"), Path("set"), on_progress=lambda progress: time.sleep(60)))
while not os.path.exists("set.incomplete"):
    time.sleep(0.001)
os.kill(killed, signal.SIGKILL)
os.waitpid(killed, 0)
assert together(2, unpacked) == ([0, 0], []) and not os.path.exists("set.incomplete")
"""
    run(here, script)
