"""The DeiT in other runtimes is the DeiT in torch: a rival that computes something else would be timed for nothing."""

import os
from collections.abc import Iterator
from functools import cache

import pytest
import torch

from stm.bench import rivals, vit
from stm.config import ModelConfig
from stm.errors import UsageError

SHAPE = (3, 32, 32)
# Of the largest logit. int8 keeps 8 bits, and on noise its errors add up over a block: what matters here is that the
# quantized model is that model.
LARGEST = {"float32": 1e-5, "int8": 0.2}


@pytest.fixture(scope="module")
def small() -> vit.ViT:
    """A DeiT of one block, because an exporter's time grows with the blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vit, "BLOCKS", 1)
        model = vit.ViT(ModelConfig(d_model=64, depth=1, dt_rank=4, image_size=32), 10)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.05, generator=generator)
    return model


@pytest.fixture(scope="module", autouse=True)
def one_export() -> Iterator[None]:
    """Both runtimes take the same file, which takes a few seconds to make."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rivals, "_onnx", cache(rivals._onnx))
        yield


@pytest.mark.slow
@pytest.mark.parametrize("runtime", rivals.RUNTIMES)
def test_every_runtime_computes_the_same_model_and_prints_nothing(
    small: vit.ViT, runtime: str, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        rivals.check(runtime, torch.device("cpu"))
    except UsageError as error:
        pytest.skip(str(error))
    images = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    forms, absent = rivals.rivals(runtime, small, SHAPE)
    assert {form.precision for form in forms} >= ({"float32"} if runtime == "vit" else {"float32", "int8"})
    with torch.inference_mode():
        expected = small(images)
        for form in forms:
            logits = torch.as_tensor(form.prepare(3)(images))
            difference = float((logits - expected).abs().max() / expected.abs().max())
            assert difference <= LARGEST.get(form.precision, 2e-2), form.precision
            # A form that is named int8 and computes in float32 would be timed under a false name.
            assert (form.precision == "float32") == (difference < 1e-5)
    assert all("bfloat16 is not measured" in sentence for sentence in absent)
    assert capfd.readouterr() == ("", "")
    if runtime == "openvino":
        assert os.environ["NNCF_CI"], "NNCF's usage statistics are not switched off"


def test_a_runtime_of_the_processor_is_no_rival_on_another_device() -> None:
    with pytest.raises(UsageError, match="runs the rival on the processor, and this model is on cuda"):
        rivals.check("onnxruntime", torch.device("cuda"))
