"""The optional native backend: plain shared libraries, one for each level of the processor, loaded with ctypes.

Where there is no compiler, or it does not know a level, the install succeeds without it and stm uses its next backend.
"""

import os
import platform
import sys
from copy import copy
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

PARTS = ("", "_scan", "_scan_coarse", "_scan_bf16", "_scan_backward", "_conv", "_conv_bf16", "_norm", "_norm_bf16")
SOURCES = [f"stm/backends/native{part}.c" for part in (*PARTS, "_product", "_int8")]
# Some of them include others, with other names and other elements.
DEPENDS = [f"stm/backends/native{part}" for part in (".h", "_scan.h", "_scan.c", "_conv.c", "_norm.c")]
LEVELS = {"": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    AVX512 = ["-march=x86-64-v4", "-mprefer-vector-width=512"]
    LEVELS |= {"-v3": ["-march=x86-64-v3"], "-v4": AVX512, "-v4-vnni": [*AVX512, "-mavx512vnni"]}
FLAGS = ["-std=gnu11", "-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
OPENMP = ["-fopenmp"] if sys.platform == "linux" else []  # Apple's clang has none: one thread


class Libraries(build_ext):
    """Builds libraries without Python's ABI: their names carry no tag, and their objects do not overwrite each
    other's."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()  # a level takes ten seconds

    def build_extension(self, ext: Extension) -> None:
        one = copy(self)  # others are built meanwhile
        one.build_temp = str(Path(self.build_temp, ext.name))
        super(Libraries, one).build_extension(ext)


setup(
    cmdclass={"build_ext": Libraries},
    ext_modules=[
        Extension(
            f"stm.backends.libstm{level}",
            SOURCES,
            depends=DEPENDS,
            extra_compile_args=FLAGS + OPENMP + flags,
            extra_link_args=[*OPENMP, "-lm"],
            optional=True,
        )
        for level, flags in LEVELS.items()
    ],
)
