"""stm: make Vision Mamba (ViM) models faster without training, by Sequential Token Merging.

    dense = stm.load("vim-digits")  # the embedded model; stm.load("vim-s") downloads an official one
    small = stm.compress(dense, rate=0.4)
    small.save_pretrained("vim-digits-stm40")
    small = stm.load("vim-digits-stm40")

Names are loaded when they are first used, so that importing this package is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from stm.compressing import compress
    from stm.config import Config, ModelConfig, Preprocess
    from stm.errors import StmError
    from stm.inputs import preprocess
    from stm.loading import load, load_checkpoint
    from stm.measure.evaluate import evaluate
    from stm.merging.schedule import Schedule, Step
    from stm.model.vim import ViM
    from stm.reports import EvalReport

_HOMES = {
    "Config": "stm.config",
    "EvalReport": "stm.reports",
    "ModelConfig": "stm.config",
    "Preprocess": "stm.config",
    "Schedule": "stm.merging.schedule",
    "Step": "stm.merging.schedule",
    "StmError": "stm.errors",
    "ViM": "stm.model.vim",
    "compress": "stm.compressing",
    "evaluate": "stm.measure.evaluate",
    "load": "stm.loading",
    "load_checkpoint": "stm.loading",
    "preprocess": "stm.inputs",
}

__all__ = [
    "Config",
    "EvalReport",
    "ModelConfig",
    "Preprocess",
    "Schedule",
    "Step",
    "StmError",
    "ViM",
    "__version__",
    "compress",
    "evaluate",
    "load",
    "load_checkpoint",
    "preprocess",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stm' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
