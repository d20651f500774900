"""What a figure was measured on."""

import platform
import subprocess
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from stm import __version__, backends
from stm.device import pick
from stm.distributed import ALONE, World
from stm.model.vim import ViM
from stm.reports import Environment


def environment_of(model: ViM, world: World = ALONE) -> Environment:
    """The environment that a ViM runs in: its device, dtype and backend, the fallbacks that it met, the processes that
    share the work."""
    device, backend = next(model.parameters()).device, model.backend
    found = environment(device, dtype=model.config.dtype, backend=backend.name, fallbacks=backend.fallbacks)
    return replace(found, processes=world.size)


def environment(
    device: str | torch.device, *, dtype: str, backend: str, fallbacks: tuple[str, ...] = ()
) -> Environment:
    """The environment of work on a device, with or without a model."""
    device = torch.device(device)
    return Environment(
        stm=__version__,
        torch=str(torch.__version__),
        device=str(device),
        name=torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        dtype=dtype,
        backend=backend,
        fallbacks=fallbacks,
        threads=torch.get_num_threads(),
    )


def current_environment() -> Environment:
    """What a model would run on for which nothing is asked."""
    device = pick()
    chosen = backends.choose(device=device.type)
    return environment(device, dtype="float32", backend=chosen.name, fallbacks=chosen.fallbacks)


@cache
def processor_name() -> str:
    """The processor as its maker names it, else its architecture."""
    return _from_cpuinfo() or _from_sysctl() or platform.processor() or platform.machine() or "unknown"


def _from_cpuinfo(path: Path = Path("/proc/cpuinfo")) -> str | None:
    """Linux. Processors other than x86 often have no such line."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return None
    return next(
        (value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == "model name"),
        None,
    )


def _from_sysctl() -> str | None:
    """macOS."""
    if platform.system() != "Darwin":
        return None
    try:
        run = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip() or None
