"""A model as OpenVINO's intermediate representation: a folder of one .xml and one .bin, read from the ONNX file."""

import errno
import re
from pathlib import Path
from typing import Any

from stm.export.onnx import document, properties
from stm.export.program import Interface
from stm.model.vim import ViM
from stm.quiet import quiet

XML, BIN = "openvino_model.xml", "openvino_model.bin"


def write(model: ViM, interface: Interface, folder: Path) -> None:
    """Write a model to an empty folder; see `stm.export.onnx.document`."""
    import openvino

    from stm.export.lowering import OPENVINO

    with quiet():
        graph = openvino.Core().read_model(document(model, interface, OPENVINO))
        for name, text in properties(model.config, interface).items():
            graph.set_rt_info(text, ["model_info", name.removeprefix("stm.")])
        _number(graph)
        try:  # the floats as they are: by default they would be halved
            openvino.save_model(graph, folder / XML, compress_to_fp16=False)
        except RuntimeError as error:  # of a C++ stream, which does not know why
            raise OSError(errno.EIO, "the disk is full, or fails") from error


def _number(graph: Any) -> None:
    """Name nodes that the ONNX file does not name by their place in a graph, so that a model gives the same bytes.

    OpenVINO names them by a count that goes on as long as the process does.
    """
    for number, node in enumerate(graph.get_ordered_ops()):
        kind = node.get_type_name()
        if re.fullmatch(rf"{kind}_\d+", node.get_friendly_name()):
            node.set_friendly_name(f"{kind}_{number}")
        if kind == "TensorIterator":
            _number(node.get_body())
