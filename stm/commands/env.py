"""`stm env`: the installed packages, and the devices and backends that a model can run on."""

import importlib.metadata
import platform

import torch

from stm import backends
from stm.device import pick
from stm.measure.environment import current_environment, processor_name
from stm.model import products
from stm.reports import BackendStatus, EnvReport

# Names of distributions, as pip knows them: a bug report needs the versions of what is installed, imported or not.
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
OPTIONAL = (
    "mamba-ssm",
    "causal-conv1d",
    "triton",
    "kernels",
    "matplotlib",
    "pyarrow",
    "onnxruntime",
    "openvino",
    "nncf",
)


def environment() -> EnvReport:
    """Run `stm env`: return versions, devices, and for each backend whether and why it can be used."""
    # Backends are asked for the device that `--device auto` would choose, since that is what a model would run on.
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
        products=": ".join(products.library()),
        backends=tuple(
            BackendStatus(name=name, available=ok, reason=reason) for name, (ok, reason) in statuses.items()
        ),
    )


def _version(package: str) -> str | None:
    # From the metadata and not from the module: importing all of them would take seconds, and may fail.
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
