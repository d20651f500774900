"""The device by name, and a model that is moved to one that its backend is not for."""

import pytest
import torch

from stm import device
from stm.backends import Backend, blocked
from stm.config import Config, ModelConfig, Preprocess, dense_schedule
from stm.device import available, pick
from stm.errors import UsageError
from stm.measure.environment import environment_of
from stm.model.vim import ViM


def test_only_what_is_here_can_be_picked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick("cpu") == torch.device("cpu")
    assert pick("auto").type in {name.partition(":")[0] for name in available()}
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert available() == ("cpu", "cuda", "cuda:0", "cuda:1")
    with pytest.raises(
        UsageError, match="there is no device 'cuda:2' here, expected auto or cpu or cuda or cuda:0 or cuda:1"
    ):
        pick("cuda:2")


def test_a_card_that_refuses_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(device, "available", lambda: ("cpu", "cuda"))
    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(UsageError, match=r"device 'cuda' cannot be used here: CUDA error: out of memory(\n|$)"):
        pick("cuda")


def test_a_model_that_is_moved_gets_a_backend_for_the_place() -> None:
    """`native` is for processors; the meta device stands for any other."""
    shape = ModelConfig(image_size=4, patch=2, stride=2, d_model=2, depth=2, d_state=2, dt_rank=1)
    native = Backend("native", blocked.conv_silu, blocked.scan, blocked.add_norm)
    model = ViM(
        Config(model=shape, num_classes=2, schedule=dense_schedule(shape), preprocessing=Preprocess.official(4)), native
    )
    dense = model.with_plan(None)
    assert model.double().backend is native

    torch.nn.Sequential(model).to("meta")
    assert {model.backend, dense.backend, *(block.mixer.backend for block in model.blocks)} == {model.backend}
    assert model.backend.name == "blocked"
    assert environment_of(model).fallbacks == ("native was left for blocked: it is for processors, not for meta",)
