"""Time the forms in which a scan can be written in ONNX's operators: a whole model, one image, one thread.

Usage: python benchmarks/export.py [MODEL] [--size PIXELS] [--saving SHARE]

MODEL is an alias; its weights are drawn. The runtimes that are installed run every form, and our own runtime runs the
model. All take turns; the least time of each counts, and its ratio to ours.
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import torch

import stm
from stm.commands.draw_model import draw_model
from stm.export.lowering import Form
from stm.export.onnx import document
from stm.export.program import Interface
from stm.options import ModelOptions

ROUNDS = 15
FORMS = {
    f"{'Softplus' if softplus else 'ten operators'}, blocks of {block}": Form(block, softplus)
    for softplus in (False, True)
    for block in (1, 4, 8, 16, 32)
}

Call = Callable[[np.ndarray], np.ndarray]


def in_onnxruntime(data: bytes) -> Call:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def in_openvino(data: bytes) -> Call:
    import openvino

    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    settings["INFERENCE_PRECISION_HINT"] = "f32"
    core = openvino.Core()
    request = core.compile_model(core.read_model(data), "CPU", settings).create_infer_request()
    return lambda images: request.infer([images])[0].copy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="vim-ti")
    parser.add_argument("--size", type=int, help="pixels of an image's side")
    parser.add_argument("--saving", type=float, help="share of the token-layers that merging saves")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    options = ModelOptions() if arguments.size is None else ModelOptions(image_size=arguments.size)
    model = draw_model(arguments.model, options)
    if arguments.saving is not None:
        model = stm.compress(model, saving=arguments.saving, method="staged")
    images = np.random.default_rng(0).standard_normal((1, *model.config.model.input_shape), dtype=np.float32)
    served = model.optimize(batch_size=1)
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()

    def ours(given: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return served(torch.from_numpy(given)).numpy()

    calls: dict[tuple[str, str], Call] = {("stm, served", ""): ours}
    runtimes: dict[str, Callable[[bytes], Call]] = {"onnxruntime": in_onnxruntime, "openvino": in_openvino}
    for name, form in FORMS.items():
        data = document(model, Interface(), form)
        for runtime, load in list(runtimes.items()):
            try:
                calls[runtime, name] = load(data)
            except ModuleNotFoundError:
                del runtimes[runtime]
                print(f"{runtime}: not installed, not measured", file=sys.stderr)
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(ROUNDS):
        for key, call in calls.items():
            start = time.perf_counter()
            call(images)
            best[key] = min(best[key], time.perf_counter() - start)
    own = best["stm, served", ""]
    for (runtime, name), seconds in best.items():
        error = np.abs(calls[runtime, name](images) - expected).max() / np.abs(expected).max()
        print(f"{runtime:12} {name:28} {seconds * 1e3:6.1f} ms, {seconds / own:.2f} of ours, differs by {error:.0e}")


if __name__ == "__main__":
    main()
