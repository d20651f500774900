"""A model as a program of torch.export, and as a package of AOTInductor: they run in a process that has torch alone."""

import io
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from stm.artifact import atomic
from stm.artifact.scratch import HINT, scratch
from stm.backends import Backend, portable
from stm.errors import ArtifactError, StmError
from stm.export import child, compile
from stm.export.onnx import properties
from stm.export.program import Interface, trace
from stm.model.vim import ViM
from stm.quiet import quiet

BACKEND = Backend("portable", portable.conv_silu, portable.scan, portable.add_norm)
COMPILED = replace(BACKEND, name="loop", scan=partial(portable.scan, recurrence=portable.loop))
FACTS = "stm.json"  # the extra file of a program: labels, preprocessing and provenance


def program(model: ViM, interface: Interface, backend: Backend = BACKEND) -> torch.export.ExportedProgram:
    """Return a model as a program of torch's own operators.

    Args:
        model: on a processor, of floats.
        interface: what goes in and comes out.
        backend: `BACKEND` for a program that runs as it is, `COMPILED` for one that a compiler takes.
    """
    with quiet():
        traced = trace(model, interface, backend)
    for node in traced.graph.nodes:  # they hold lines of our source, with the paths of this machine
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node"):
            node.meta.pop(key, None)
    return traced


def write(model: ViM, interface: Interface, draft: Path, backend: Backend = BACKEND) -> None:
    """Write a program: `torch.export.load(FILE).module()(images)` runs it."""
    facts, written = {FACTS: text(model, interface)}, io.BytesIO()
    with quiet():
        torch.export.save(program(model, interface, backend), written, extra_files=facts)
    draft.write_bytes(written.getbuffer())  # not by torch, whose writer ends the process if the disk is full


def write_aoti(model: ViM, interface: Interface, draft: Path) -> None:
    """Compile a program for this machine's processor: `torch._inductor.aoti_load_package(FILE)(images)` runs it.

    It is compiled in a process of its own: what that leaves in temporary files goes away, also if we are interrupted.

    Raises:
        StmError: the compiler failed.
        ArtifactError: the folder for temporary files is full.
    """
    with scratch("stm-export") as folder:
        traced, facts, package = folder / "traced.pt2", folder / FACTS, folder / "package.pt2"
        with atomic.refusing(folder, HINT, ArtifactError):
            write(model, interface, traced, COMPILED)
            facts.write_text(json.dumps({FACTS: text(model, interface)}), encoding="utf-8")
        run = child.run(compile.__file__, str(traced), str(facts), str(package), folder=folder)
        if run.returncode:
            raise StmError(
                f"AOTInductor built no package: {_reason(run.stderr, run.returncode)}", "--format pt2 needs no compiler"
            )
        draft.write_bytes(package.read_bytes())


def aoti_seconds(model: ViM, interface: Interface) -> float:
    """Return about how many seconds of one core `write_aoti` takes: docs/export.md has what was measured."""
    return 80 + len(model.blocks) * (12 if interface.batch_size is None else 4)


def _reason(stderr: str, code: int) -> str:
    """Return the line of a traceback that names the error: the last that is not indented and has a colon, or so."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    named = [line for line in lines if line[:1].isalpha() and "Error" in line.partition(":")[0]]
    return (named or lines or [f"exit code {code}"])[-1].strip()


def text(model: ViM, interface: Interface) -> str:
    """Return what a file says of its model, as one JSON object: the keys of `stm.export.onnx.properties`."""
    every = properties(model.config, interface)
    return json.dumps({name.removeprefix("stm."): json.loads(value) for name, value in every.items()}, sort_keys=True)
