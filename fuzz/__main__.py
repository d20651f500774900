"""`python -m fuzz TARGET [options of libFuzzer]`: feed one target, beginning with its corpus. Needs `[fuzz]`."""

import importlib
import sys

import atheris

# The modules whose branches guide the search: ours, and those of others that take files apart for us.
GUIDED = ["stm", "zipfile", "tarfile", "pickletools", "json.decoder", "csv", "PIL"]

name = sys.argv.pop(1)
with atheris.instrument_imports(include=GUIDED):
    harness = importlib.import_module("fuzz.harness")
    target = importlib.import_module(f"fuzz.{name}")
# This one alone of torch: to instrument the package takes a minute.
unpickler = importlib.import_module("torch._weights_only_unpickler").Unpickler
unpickler.load = atheris.instrument_func(unpickler.load)
sys.argv.append(str(harness.corpus(name)))
harness.main(name, target)
