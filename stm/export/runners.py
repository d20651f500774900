"""Run a file in its runtime. Executed as a script, in a process that has the runtime and numpy and nothing of ours.

Usage: python -P runners.py RUNTIME FILE INPUTS OUTPUTS THREADS

INPUTS is a .npz of batches. OUTPUTS becomes one with the outputs of each under its name and their number, such as
`batch 0`, and `seconds`: how long each of several runs of the first batch took.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

ENOUGH = 2.0  # seconds of timing
MOST = 15  # runs that are timed
UNWRITTEN = 74  # the exit code if OUTPUTS cannot be written: EX_IOERR of sysexits.h


def onnxruntime(file: str, threads: int) -> Callable[[Any], Any]:
    """Return a call that runs an ONNX file."""
    import onnxruntime as runtime

    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})


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
    return lambda images: [output.copy() for output in request.infer([images]).to_tuple()]


def torch(file: str, threads: int) -> Callable[[Any], Any]:
    """Return a call that runs a program of torch.export or a package of AOTInductor, which are zip files both."""
    import zipfile

    import torch as runtime

    runtime.set_num_threads(threads)
    call: Any
    if any("aotinductor" in name for name in zipfile.ZipFile(file).namelist()):
        from torch._inductor import aoti_load_package

        call = aoti_load_package(file)
    else:
        call = runtime.export.load(file).module()

    def run(images: Any) -> Any:
        with runtime.inference_mode():
            outputs = call(runtime.from_numpy(images))
        return [each.numpy() for each in (outputs if isinstance(outputs, tuple | list) else [outputs])]

    return run


RUNTIMES: dict[str, Callable[[str, int], Callable[[Any], Any]]] = {
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "torch": torch,
}


def main(runtime: str, file: str, inputs: str, outputs: str, threads: str) -> None:
    """Run every batch, then time the first."""
    import numpy

    call = RUNTIMES[runtime](file, int(threads))
    with numpy.load(inputs) as batches:
        results = {
            f"{name} {number}": output for name in batches.files for number, output in enumerate(call(batches[name]))
        }
        first = batches[batches.files[0]]
    seconds: list[float] = []
    while len(seconds) < MOST and sum(seconds) < ENOUGH:
        start = time.perf_counter()
        call(first)
        seconds.append(time.perf_counter() - start)
    try:
        with open(outputs, "wb") as stream:
            numpy.savez(stream, seconds=seconds, **results)
    except OSError as error:
        sys.stderr.write(f"{error.strerror or error}\n")
        sys.exit(UNWRITTEN)


if __name__ == "__main__":
    main(*sys.argv[1:])
