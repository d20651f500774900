"""`python -m fuzz TARGET [options of libFuzzer]`: feed one target, beginning with its corpus. Needs the extra `fuzz`."""

import importlib
import sys

import atheris

# The modules whose branches guide the search: ours, and those of others that take files apart for us.
GUIDED = ["stm", "zipfile", "tarfile", "pickletools", "json.decoder", "csv", "torch._weights_only_unpickler", "PIL"]

name = sys.argv.pop(1)
with atheris.instrument_imports(include=GUIDED):
    harness = importlib.import_module("fuzz.harness")
    target = importlib.import_module(f"fuzz.{name}")
sys.argv.append(str(harness.corpus(name)))
harness.main(name, target)
