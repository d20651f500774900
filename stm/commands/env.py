"""`stm env`: what is installed, and what there is to run on."""

import importlib.metadata
import platform

import torch

from stm import backends
from stm.device import pick
from stm.measure.environment import current_environment, processor_name
from stm.reports import BackendStatus, EnvReport

NEEDED = (
    "torch",
    "safetensors",
    "numpy",
    "scipy",
    "pillow",
    "huggingface-hub",
    "jinja2",
    "pyyaml",
    "filelock",
    "typer",
    "rich",
)
OPTIONAL = ("mamba-ssm", "causal-conv1d", "triton", "kernels", "matplotlib", "pyarrow")


def environment() -> EnvReport:
    """`stm env`: what is installed, what there is to run on, and each backend with its reason."""
    device = pick()
    statuses = {name: backends.status(name, device.type) for name in backends.NAMES}
    cards = [f"cuda:{number} {torch.cuda.get_device_name(number)}" for number in range(torch.cuda.device_count())]
    return EnvReport(
        command="env",
        model="",
        environment=current_environment(),
        python=platform.python_version(),
        platform=platform.platform(),
        packages={name: _version(name) for name in (*NEEDED, *OPTIONAL)},
        devices=(f"cpu {processor_name()}", *cards),
        backends=tuple(
            BackendStatus(name=name, available=ok, reason=reason) for name, (ok, reason) in statuses.items()
        ),
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
