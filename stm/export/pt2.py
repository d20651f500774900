"""A model as a program of torch.export, and as a package of AOTInductor: they run in a process that has torch alone."""

import io
import json
from pathlib import Path
from typing import Any

import torch

from stm.backends import Backend, portable
from stm.errors import StmError, said
from stm.export.onnx import properties
from stm.export.program import Interface, trace
from stm.model.vim import ViM
from stm.quiet import quiet

BACKEND = Backend("portable", portable.conv_silu, portable.scan, portable.add_norm)
FACTS = "stm.json"  # the extra file of a program: labels, preprocessing and provenance


def program(model: ViM, interface: Interface) -> torch.export.ExportedProgram:
    """Return a model as a program of torch's own operators.

    Args:
        model: on a processor, of floats.
        interface: what goes in and comes out.
    """
    with quiet():
        traced = trace(model, interface, BACKEND)
    for node in traced.graph.nodes:  # they hold lines of our source, with the paths of this machine
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node"):
            node.meta.pop(key, None)
    return traced


def write(model: ViM, interface: Interface, draft: Path) -> None:
    """Write a program: `torch.export.load(FILE).module()(images)` runs it."""
    facts, written = {FACTS: text(model, interface)}, io.BytesIO()
    with quiet():
        torch.export.save(program(model, interface), written, extra_files=facts)
    draft.write_bytes(written.getbuffer())  # not by torch, whose writer ends the process if the disk is full


def write_aoti(model: ViM, interface: Interface, draft: Path) -> None:
    """Compile a program for this machine's processor: `torch._inductor.aoti_load_package(FILE)(images)` runs it.

    Raises:
        StmError: the compiler failed.
    """
    from torch._inductor import aoti_compile_and_package

    package = io.BytesIO()
    settings: dict[str, Any] = {"aot_inductor.metadata": {FACTS: text(model, interface)}}
    try:
        with quiet():
            aoti_compile_and_package(program(model, interface), package_path=package, inductor_configs=settings)
    except Exception as error:  # torch raises the compiler's failure as various kinds
        lines = str(said(error)).strip().splitlines()
        raise StmError(
            f"AOTInductor built no package: {lines[0] if lines else type(error).__name__}",
            "--format pt2 needs no compiler",
        ) from error
    draft.write_bytes(package.getbuffer())


def text(model: ViM, interface: Interface) -> str:
    """Return what a file says of its model, as one JSON object: the keys of `stm.export.onnx.properties`."""
    every = properties(model.config, interface)
    return json.dumps({name.removeprefix("stm."): json.loads(value) for name, value in every.items()}, sort_keys=True)
