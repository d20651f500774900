"""A model as one ONNX file of standard operators."""

import json
from typing import TYPE_CHECKING, Any

from stm import __version__
from stm.config import Config
from stm.config_file import to_json
from stm.export.program import INPUT, Interface, trace
from stm.model.vim import ViM
from stm.quiet import quiet

if TYPE_CHECKING:
    from stm.export.lowering import Form

OPSET = 23  # the newest of torch's exporter; ONNX Runtime takes it from 1.23 on, which is the floor of the extra
_FOLDED = 2**40  # bytes of a constant that follows from weights: all of them


def document(model: ViM, interface: Interface, form: "Form | None" = None) -> bytes:
    """Return a model as the bytes of an ONNX file. The same model gives the same bytes.

    Args:
        model: on a processor, of floats.
        interface: what goes in and comes out.
        form: of the operators, for the runtime that reads it; None for ONNX Runtime's.
    """
    import onnx_ir as ir
    import torch
    from onnx_ir.passes import common
    from onnxscript import optimizer

    from stm.export.lowering import BACKEND, ONNX_RUNTIME, lower

    with quiet():
        program = trace(model, interface, BACKEND)
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            input_names=[INPUT],
            output_names=list(interface.outputs),
            opset_version=OPSET,
            verbose=False,
            optimize=False,
        )
        assert exported is not None
        graph: Any = exported.model
        lower(graph, form or ONNX_RUNTIME)
        # Constants alone: the rewriting rules of `optimize` get a batch of two directions wrong (onnxscript 0.7.2).
        optimizer.fold_constants(graph, onnx_shape_inference=False, input_size_limit=_FOLDED, output_size_limit=_FOLDED)
        common.RemoveUnusedNodesPass()(graph)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
        common.DeduplicateInitializersPass()(graph)
        # They hold lines of our source, with the paths of this machine.
        common.ClearMetadataAndDocStringPass()(graph)
    graph.producer_name, graph.producer_version = "stm", __version__
    graph.metadata_props.update(properties(model.config, interface))
    proto = ir.to_proto(graph)
    return proto.SerializeToString(deterministic=True)


def properties(config: Config, interface: Interface) -> dict[str, str]:
    """Return what a file says of its model, one JSON text per key: the parts of `config.json`, and the interface."""
    document = to_json(config)
    kept = ("architecture", "dtype", "label_names", "model", "num_classes", "preprocessing", "protection", "recipe")
    values = {name: document[name] for name in (*kept, "schedule", "source", "stm_version")} | {
        "input": {
            "name": INPUT,
            "shape": [interface.batch_size, *interface.shape(config)],
            "dtype": str(interface.dtype()).removeprefix("torch."),
            "normalised": not interface.preprocessing,
        },
        # One name; a list of them if there are several.
        "output": interface.outputs[0] if interface.out_indices is None else list(interface.outputs),
        # Per token that is left, the positions that it holds, in the sequence that enters block 0.
        "groups": [list(group) for group in config.schedule.groups[-1]],
    }
    return {f"stm.{name}": json.dumps(values[name], ensure_ascii=False, sort_keys=True) for name in sorted(values)}
