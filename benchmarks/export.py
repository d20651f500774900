"""Time the forms in which a scan can be written in ONNX's operators: one block of ViM-Ti, one image, one thread.

Usage: python benchmarks/export.py [E]

The forms take turns, and the least time of each counts.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

L, K, B, N = 197, 2, 1, 16
ROUNDS = 15
node = helper.make_node


def inputs(E: int) -> dict[str, np.ndarray]:
    """Delta, Delta u, B and C in walking order."""
    rng = np.random.default_rng(0)
    delta = np.log1p(np.exp(rng.standard_normal((L, K, B, 1, E)) - 3))
    x = delta * rng.standard_normal(delta.shape)
    made = {
        "delta": delta,
        "x": x,
        "B": rng.standard_normal((L, K, B, N, 1)),
        "C": rng.standard_normal((L, K, B, 1, N)),
    }
    return {name: value.astype(np.float32) for name, value in made.items()}


def decays(E: int) -> np.ndarray:
    return -np.broadcast_to(np.arange(1, N + 1, dtype=np.float32)[None, None, :, None], (K, 1, N, E)).copy()


def truth(given: dict[str, np.ndarray], A: np.ndarray) -> np.ndarray:
    h, out = np.zeros_like(A), []
    for t in range(L):
        h = np.exp(given["delta"][t] * A) * h + given["B"][t] * given["x"][t]
        out.append(given["C"][t] @ h)
    return np.stack(out)


def token(d: str, x: str, b: str, before: str, after: str) -> list[Any]:
    """One step of the recurrence."""
    return [
        node("Mul", [d, "A"], [f"{after}_m"]),
        node("Exp", [f"{after}_m"], [f"{after}_e"]),
        node("Mul", [f"{after}_e", before], [f"{after}_p"]),
        node("Mul", [b, x], [f"{after}_i"]),
        node("Add", [f"{after}_p", f"{after}_i"], [after]),
    ]


def info(name: str, shape: Any = None) -> Any:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def by_token(E: int) -> tuple[list[Any], list[Any]]:
    """A Scan of one step per token: what `stm export` writes."""
    nodes = [*token("d", "u", "b", "h", "after"), node("MatMul", ["c", "after"], ["out"])]
    body = helper.make_graph(nodes, "token", [info(name) for name in "hdubc"], [info("after"), info("out")])
    scan = node("Scan", ["h0", "delta", "x", "B", "C"], ["last", "y"], body=body, num_scan_inputs=4)
    return [scan], [numpy_helper.from_array(np.zeros((K, B, N, E), np.float32), "h0")]


def by_block(T: int) -> Callable[[int], tuple[list[Any], list[Any]]]:
    """A Scan over blocks of T tokens: exponentials of a block at once, the steps unrolled."""

    def make(E: int) -> tuple[list[Any], list[Any]]:
        blocks = -(-L // T)
        nodes = [node("Mul", ["d", "A"], ["m"]), node("Exp", ["m"], ["a"]), node("Mul", ["b", "u"], ["i"])]
        for name in ("a", "i"):
            nodes.append(node("Split", [name], [f"{name}{t}" for t in range(T)], axis=0, num_outputs=T))
        before = "h"
        for t in range(T):
            nodes += [node("Mul", [f"a{t}", before], [f"p{t}"]), node("Add", [f"p{t}", f"i{t}"], [f"s{t}"])]
            before = f"s{t}"
        nodes += [
            node("Concat", [f"s{t}" for t in range(T)], ["states"], axis=0),
            node("MatMul", ["c", "states"], ["out"]),
            node("Identity", [before], ["after"]),
        ]
        body = helper.make_graph(nodes, "block", [info(name) for name in "hdubc"], [info("after"), info("out")])
        pads = np.array([0] * 5 + [blocks * T - L] + [0] * 4, np.int64)
        constants = [
            numpy_helper.from_array(np.zeros((1, K, B, N, E), np.float32), "h0"),
            numpy_helper.from_array(pads, "pads"),
            numpy_helper.from_array(np.array([blocks * T, K, B, 1, E], np.int64), "all"),
            numpy_helper.from_array(np.array([0], np.int64), "first"),
            numpy_helper.from_array(np.array([L], np.int64), "end"),
        ]
        outer = []
        for name, rest in (("delta", (1, E)), ("x", (1, E)), ("B", (N, 1)), ("C", (1, N))):
            constants.append(numpy_helper.from_array(np.array([blocks, T, K, B, *rest], np.int64), f"{name}_shape"))
            outer += [
                node("Pad", [name, "pads"], [f"{name}_padded"]),
                node("Reshape", [f"{name}_padded", f"{name}_shape"], [f"{name}_blocks"]),
            ]
        names = [f"{name}_blocks" for name in ("delta", "x", "B", "C")]
        outer += [
            node("Scan", ["h0", *names], ["last", "ys"], body=body, num_scan_inputs=4),
            node("Reshape", ["ys", "all"], ["y_padded"]),
            node("Slice", ["y_padded", "first", "end", "first"], ["y"]),
        ]
        return outer, constants

    return make


FORMS: dict[str, Callable[[int], tuple[list[Any], list[Any]]]] = {
    "Scan by token": by_token,
    **{f"Scan by blocks of {T}": by_block(T) for T in (4, 8, 16, 32)},
}


def sessions(data: bytes) -> dict[str, Callable[[dict[str, np.ndarray]], np.ndarray]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    calls: dict[str, Any] = {"onnxruntime": lambda given: session.run(None, given)[0]}
    try:
        import openvino
    except ModuleNotFoundError:
        return calls
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(core.read_model(data), "CPU", settings).create_infer_request()
    calls["openvino"] = lambda given: request.infer(given)[0].copy()
    return calls


def main() -> None:
    E = int(sys.argv[1]) if len(sys.argv) > 1 else 384
    given, A = inputs(E), decays(E)
    expected, calls = truth(given, A), {}
    for form, make in FORMS.items():
        nodes, constants = make(E)
        graph = helper.make_graph(
            nodes,
            "scan",
            [info(name, value.shape) for name, value in given.items()],
            [info("y")],
            [numpy_helper.from_array(A, "A"), *constants],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
        for runtime, call in sessions(model.SerializeToString()).items():
            error = np.abs(call(given).reshape(expected.shape) - expected).max() / np.abs(expected).max()
            calls[runtime, form] = call, error
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(ROUNDS):
        for name, (call, _error) in calls.items():
            start = time.perf_counter()
            call(given)
            best[name] = min(best[name], time.perf_counter() - start)
    for (runtime, form), seconds in best.items():
        print(f"{runtime:12} {form:22} {seconds * 1e3:6.2f} ms, differs by {calls[runtime, form][1]:.0e}")


if __name__ == "__main__":
    main()
