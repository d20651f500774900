"""A folder whose config claims more than its weights hold is refused before anything of that size exists."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from stm import ViM, load
from stm.artifact import folder as artifact
from stm.artifact.shapes import shapes
from stm.backends import choose
from stm.config import Config, ModelConfig, Preprocess, Protection, dense_schedule
from stm.config_file import dumps
from stm.errors import ArtifactError
from stm.merging.schedule import Schedule, Step
from tests.hang import HANG

MODEL = ModelConfig(image_size=8, patch=2, stride=2, d_model=4, depth=3, d_state=2, dt_rank=1)
PROTECTION = Protection()
STEPS = (Step(0, ((0, 1), (3, 2))), Step(1, ((1, 2),)))


def made(
    model: ModelConfig = MODEL, classes: int = 3, protection: Protection | None = PROTECTION, **more: Any
) -> Config:
    prep = Preprocess(
        resize=model.image_size, crop=model.image_size, mean=(0.5,) * model.in_chans, std=(0.5,) * model.in_chans
    )
    schedule = dense_schedule(model) if protection is None else Schedule(model.tokens, model.cls, STEPS)
    return Config(
        model=model, num_classes=classes, schedule=schedule, protection=protection, preprocessing=prep, **more
    )


@pytest.mark.parametrize(
    "protection",
    [
        None,
        Protection(),
        Protection(step_scale=0),
        Protection(span_conv=False),
        Protection(weights="hsp", mode="dynamic"),
        Protection(weights="hsp", mode="dynamic", step_scale=0, normalized=True),
    ],
)
def test_the_shapes_are_the_model_s_own(protection: Protection | None) -> None:
    model = ModelConfig(
        image_size=12, patch=4, stride=2, in_chans=5, d_model=6, depth=3, d_state=7, dt_rank=8, expand=3, d_conv=2
    )
    config = made(model, 11, protection)
    assert dict(shapes(config)) == {
        name: tuple(each.shape) for name, each in ViM(config, choose("blocked", "cpu")).state_dict().items()
    }


CLAIMS = {
    "patches": {"image_size": 8192, "patch": 1, "stride": 1},
    "overlapping patches": {"image_size": 8192, "stride": 1},
    "a patch": {"image_size": 8192, "patch": 8000, "stride": 64},
    "channels": {"in_chans": 10**4},
    "a width": {"d_model": 10**9},
    "an inner width": {"expand": 10**12},
    "states": {"d_state": 10**18},
    "a rank": {"dt_rank": 10**25},
    "a convolution": {"d_conv": 10**10},
    "all": {"d_model": 10**7, "expand": 10**7, "d_state": 10**7, "dt_rank": 10**7, "d_conv": 10**7},
    "blocks": {"depth": 20_000},
    "classes": {"classes": 10**12},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A healthy folder, and one for each claim, with the healthy one's weights."""
    config = made()
    torch.manual_seed(0)
    tensors = {
        name: torch.rand(each.shape) for name, each in ViM(config, choose("blocked", "cpu")).state_dict().items()
    }
    root = tmp_path_factory.mktemp("claims")
    files = artifact.write(root / "healthy", config, tensors, "# card\n").files
    found = {"healthy": root / "healthy"}
    for name, claim in CLAIMS.items():
        found[name] = root / name
        found[name].mkdir()
        (found[name] / "model.safetensors").hardlink_to(root / "healthy" / "model.safetensors")
        shape = {key: value for key, value in claim.items() if key != "classes"}
        (found[name] / "config.json").write_text(
            dumps(made(dataclasses.replace(MODEL, **shape), claim.get("classes", 3), files=files))
        )
    return found


def test_each_is_refused_by_what_is_there(folders: dict[str, Path]) -> None:
    assert load(folders["healthy"], device="cpu").plan is not None
    for name in CLAIMS:
        with pytest.raises(
            ArtifactError, match=r"model\.safetensors does not hold the tensors that were expected: "
        ) as caught:
            load(folders[name], device="cpu")
        assert "instead of" in caught.value.message or "for 20,000 blocks" in caught.value.message


PROGRAM = """
import resource, sys
from pathlib import Path
import torch
import stm
from stm.errors import ArtifactError
stm.load(sys.argv[1], device="cpu")  # all that loading imports

used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 28), -1))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for folder in sys.argv[2:]:
    try:
        stm.load(folder, device="cpu")
    except ArtifactError as error:
        if "expected: " in str(error):
            continue
        raise
    raise SystemExit(f"{folder} was loaded")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_none_takes_memory(folders: dict[str, Path]) -> None:
    """All of them in one process that may take 256 MB more than it has."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, folders.values())], capture_output=True, text=True, timeout=HANG
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100_000  # KB


@pytest.mark.parametrize(
    ("claim", "says"),
    [
        ({"image_size": 10**9, "stride": 10**9}, "image_size is 1000000000, expected at most 8192"),
        ({"image_size": 8193, "patch": 8193}, "image_size is 8193, expected at most 8192"),
    ],
)
def test_what_no_weights_bound(claim: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(MODEL, **claim)
    with pytest.raises(ValueError, match="resize is 10001, expected at most 10 times the crop 1000"):
        Preprocess(resize=10_001, crop=1000)


def test_sizes_are_those_of_the_groups() -> None:
    schedule = Schedule(17, 8, STEPS)
    assert schedule.sizes == tuple(tuple(map(len, groups)) for groups in schedule.groups)
