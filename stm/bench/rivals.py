"""A DeiT as people deploy it: in PyTorch, ONNX Runtime and OpenVINO, in the precisions that each has on this processor.

A model is fast if it is faster than what somebody would run in its place. On a processor that is rarely PyTorch: both
runtimes choose products for the machine, pack weights, and fuse what stands between products. So a comparison with
PyTorch alone flatters whoever is compared.

Each runtime gets its own recommended int8: dynamic quantization in ONNX Runtime (weights in int8, activations measured
at every run), post-training quantization by NNCF in OpenVINO (activations measured once, on sample images). Weights are
random and images are noise, because speed depends on neither.
"""

import importlib.metadata
import os
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stm.bench.vit import ViT
from stm.errors import UsageError
from stm.install import install_command
from stm.quiet import quiet

# The words of `--against`, and what the runtime is called.
RUNTIMES = {"vit": "PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
# What each needs beyond this package: ONNX is the form in which both take a model.
_NEEDS = {
    "vit": (),
    "onnxruntime": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino", "nncf"),
}
_CALIBRATION = 8  # images that NNCF measures activations on: their values change no speed
_INPUT = "images"

Run = Callable[[Tensor], Any]


class Rival(NamedTuple):
    """A DeiT in one runtime and one precision.

    Args:
        precision: float32, bfloat16, float16 or int8.
        prepare: from a batch size to a call that runs on normalised images (B, C, H, W) of that size.
    """

    precision: str
    prepare: Callable[[int], Run]


def rivals(runtime: str, model: ViT, shape: tuple[int, int, int]) -> tuple[tuple[Rival, ...], tuple[str, ...]]:
    """Return a model in every precision that a runtime has here, and a sentence for each that it has not.

    Args:
        runtime: one of `RUNTIMES`, which `check` has passed.
        model: on the device and in the dtype that PyTorch is to run it in; the other runtimes take a float32 model
            on a processor.
        shape: (C, H, W) of an image.
    """
    if runtime == "vit":
        dtype = str(model.cls_token.dtype).removeprefix("torch.")
        return (Rival(dtype, lambda batch_size: model),), ()  # PyTorch lays nothing out for a batch size
    exported = _onnx(model, shape)
    return _in_onnxruntime(exported) if runtime == "onnxruntime" else _in_openvino(exported, shape)


def check(runtime: str, device: torch.device) -> None:
    """Refuse a runtime that is not installed, or that would run elsewhere than the model that it is compared with.

    Raises:
        UsageError: what is missing, or the device.
    """
    if runtime != "vit" and device.type != "cpu":
        raise UsageError(
            f"{RUNTIMES[runtime]} runs the rival on the processor, and this model is on {device}",
            "add --device cpu, or compare with PyTorch: --against vit",
        )
    if missing := [name for name in _NEEDS[runtime] if find_spec(name) is None]:
        raise UsageError(
            f"{RUNTIMES[runtime]} is not measured: {', '.join(missing)} not installed", install_command("bench")
        )


def version(runtime: str) -> str:
    """Return the version of a runtime that is installed."""
    return importlib.metadata.version("torch" if runtime == "vit" else runtime)


def _onnx(model: ViT, shape: tuple[int, int, int]) -> Any:
    """Return the model as an `onnx.ModelProto` that takes batches of any size."""
    # Two images: the exporter takes a dimension of size one for a constant.
    example = torch.zeros(2, *shape)
    with quiet():
        batch = torch.export.Dim("batch")
        program = torch.onnx.export(
            model, (example,), dynamo=True, input_names=[_INPUT], dynamic_shapes=({0: batch},), verbose=False
        )
    assert program is not None
    return program.model_proto


def _in_onnxruntime(exported: Any) -> tuple[tuple[Rival, ...], tuple[str, ...]]:
    from onnxruntime.quantization import quantize_dynamic

    with tempfile.TemporaryDirectory() as folder, quiet():
        quantized = Path(folder) / "int8.onnx"  # the quantizer writes files only
        quantize_dynamic(exported, quantized)
        models = {"float32": exported.SerializeToString(), "int8": quantized.read_bytes()}

    def session(data: bytes, batch_size: int) -> Run:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_free_dimension_override_by_name("batch", batch_size)  # a known size lets it plan its memory
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return lambda images: session.run(None, {_INPUT: images.numpy()})[0]

    return tuple(Rival(name, _of(session, data)) for name, data in models.items()), ()


def _in_openvino(exported: Any, shape: tuple[int, int, int]) -> tuple[tuple[Rival, ...], tuple[str, ...]]:
    # NNCF sends usage statistics to its makers unless this is set before its import. Nothing leaves by our doing.
    os.environ.setdefault("NNCF_CI", "1")
    import nncf
    import openvino

    core = openvino.Core()
    generator = torch.Generator().manual_seed(0)
    samples = [torch.randn(1, *shape, generator=generator).numpy() for _ in range(_CALIBRATION)]
    with quiet():
        plain = core.read_model(exported.SerializeToString())
        quantized = nncf.quantize(
            plain.clone(), nncf.Dataset(samples), subset_size=len(samples), model_type=nncf.ModelType.TRANSFORMER
        )
    models = {"float32": (plain, "f32"), "bfloat16": (plain, "bf16"), "int8": (quantized, "f32")}
    notes: tuple[str, ...] = ()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        # It would compute in float32 and be timed under another name.
        del models["bfloat16"]
        notes = ("OpenVINO in bfloat16 is not measured: this processor has no instructions for it",)

    def compiled(model: tuple[Any, str], batch_size: int) -> Run:
        graph, precision = model
        graph = graph.clone()
        graph.reshape([batch_size, *shape])
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
        }
        request = core.compile_model(graph, "CPU", settings).create_infer_request()
        return lambda images: request.infer([images.numpy()], share_inputs=True)[0]

    return tuple(Rival(name, _of(compiled, model)) for name, model in models.items()), notes


def _of(make: Callable[[Any, int], Run], model: Any) -> Callable[[int], Run]:
    return lambda batch_size: make(model, batch_size)
