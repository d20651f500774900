"""A model as OpenVINO's intermediate representation: a folder of one .xml and one .bin, read from the ONNX file."""

import errno
from pathlib import Path

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
        try:  # the floats as they are: by default they would be halved
            openvino.save_model(graph, folder / XML, compress_to_fp16=False)
        except RuntimeError as error:  # of a C++ stream, which does not know why
            raise OSError(errno.EIO, "the disk is full, or fails") from error
