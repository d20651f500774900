"""Compile a program of torch.export to a package of AOTInductor. Executed as a script, in a process that has torch.

Usage: python -P compile.py PROGRAM FACTS PACKAGE

FACTS is a file of JSON, text by name: what the package keeps of its model.
"""

import io
import json
import sys
from pathlib import Path


def main(program: str, facts: str, package: str) -> None:
    """Write a package, or end with what torch says of the compiler's failure."""
    import torch
    from torch._inductor import aoti_compile_and_package

    written = io.BytesIO()
    settings = {"aot_inductor.metadata": json.loads(Path(facts).read_text(encoding="utf-8"))}
    aoti_compile_and_package(torch.export.load(program), package_path=written, inductor_configs=settings)
    Path(package).write_bytes(written.getbuffer())  # not by torch, whose writer ends the process if the disk is full


if __name__ == "__main__":
    main(*sys.argv[1:])
