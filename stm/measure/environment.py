"""Describe the environment in which a figure was measured."""

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
    """Return the environment that a ViM runs in: device, dtype, backend, fallbacks, and the processes that share the
    work."""
    device, backend = next(model.parameters()).device, model.backend
    of_one = environment(device, dtype=model.config.dtype, backend=backend.name, fallbacks=backend.fallbacks)
    return replace(of_one, processes=world.size)


def environment(
    device: str | torch.device, *, dtype: str, backend: str, fallbacks: tuple[str, ...] = ()
) -> Environment:
    """Return the environment of work on a device, with or without a model."""
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
    """Return the environment of a model for which no device, dtype or backend is asked for."""
    device = pick()
    chosen = backends.choose(device=device.type)
    return environment(device, dtype="float32", backend=chosen.name, fallbacks=chosen.fallbacks)


@cache
def processor_name() -> str:
    """Return the processor's name as its maker gives it, or else its architecture."""
    # `platform.processor` is empty or no more than the architecture on most Linux and macOS systems.
    return _from_cpuinfo() or _from_sysctl() or platform.processor() or platform.machine() or "unknown"


def _from_cpuinfo(path: Path = Path("/proc/cpuinfo")) -> str | None:
    """Return the processor's name on Linux, or None. Processors other than x86 often have no such line."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return None
    return next(
        (value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == "model name"),
        None,
    )


def _from_sysctl() -> str | None:
    """Return the processor's name on macOS, or None."""
    if platform.system() != "Darwin":
        return None
    try:
        run = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip() or None
