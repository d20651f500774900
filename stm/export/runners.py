"""Run a file in its runtime. Executed as a script, in a process that has the runtime and numpy and nothing of ours.

Usage: python -P runners.py RUNTIME FILE INPUTS OUTPUTS THREADS

INPUTS is a .npz of batches; OUTPUTS becomes one with the output of each under its name, and `seconds`: how long each
of several runs of the first batch took.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

ENOUGH = 2.0  # seconds of timing
MOST = 15  # runs that are timed


def onnxruntime(file: str, threads: int) -> Callable[[Any], Any]:
    """Return a call that runs an ONNX file."""
    import onnxruntime as runtime

    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def openvino(file: str, threads: int) -> Callable[[Any], Any]:
    """Return a call that runs an OpenVINO IR or an ONNX file, in its own precision."""
    import openvino as runtime

    core = runtime.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        # Left to itself it computes in bfloat16 on processors that have it.
        "EXECUTION_MODE_HINT": "ACCURACY",
    }
    request = core.compile_model(file, "CPU", settings).create_infer_request()
    return lambda images: request.infer([images])[0].copy()


RUNTIMES: dict[str, Callable[[str, int], Callable[[Any], Any]]] = {"onnxruntime": onnxruntime, "openvino": openvino}


def main(runtime: str, file: str, inputs: str, outputs: str, threads: str) -> None:
    """Run every batch, then time the first."""
    import numpy

    call = RUNTIMES[runtime](file, int(threads))
    with numpy.load(inputs) as batches:
        results = {name: call(batches[name]) for name in batches.files}
        first = batches[batches.files[0]]
    seconds: list[float] = []
    while len(seconds) < MOST and sum(seconds) < ENOUGH:
        start = time.perf_counter()
        call(first)
        seconds.append(time.perf_counter() - start)
    numpy.savez(outputs, seconds=seconds, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
