"""A model ready to serve: the same function, arranged for one batch size on its machine.

On a processor the matrix products of the blocks take weights packed in oneDNN's layout, everything that does not depend
on the images is computed once (stm/model/prepared.py), and the process keeps the memory that a forward frees
(stm/model/malloc.py) and lets threads that wait sleep (stm/model/waiting.py). On a CUDA device the whole forward is
recorded once as a CUDA graph and replayed, because the launches of a small model's kernels take longer than the
kernels.

Packed and recorded values live only in the `Served` model, never in the original. Arrangements that were not possible
are in its notes.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stm.artifact.tensors import check_images
from stm.backends.native_calls import has_vnni
from stm.config import INT8, Config
from stm.errors import UsageError, said
from stm.model import products
from stm.model.layers import TORCH_DTYPES
from stm.model.malloc import keep_freed
from stm.model.prepared import Int8Product, PreparedBlock
from stm.model.quantized import Int8Mixer
from stm.model.vim import ViM
from stm.model.waiting import WATCH
from stm.model.workspace import Workspace

# The most images per portion on a processor. Of ViM-S, an image takes 1.02 times as long alone and 1.10 times as long
# among 32, because glibc does not keep pieces as large as theirs (`malloc.LARGEST`).
IMAGES_AT_ONCE = 8
_FOR_INFERENCE = "what optimize returns is for inference alone: its logits have no gradient"
_PLAIN = "train the model that optimize was called on, then optimize it again"
_WARM_UP = 3  # forwards before a CUDA graph is recorded: the first ones compile and choose kernels, a graph cannot

Run = Callable[[Tensor], Tensor]


class Served(nn.Module):
    """A classifier for inference only. It takes batches of any size, in portions.

    Its logits have no gradient, and autocast does not affect it: packed, recorded and prepared values have a dtype of
    their own.

    Args:
        model: the arranged model, which shares the original's parameters.
        run: computes the logits (b, classes) of a portion (b, C, H, W).
        portion: the number of images that `run` takes at most.
        exact: whether `run` takes no fewer either. A smaller portion is then filled up with zeros, whose logits are
            dropped.
        notes: the arrangements that were not possible, one sentence each.
        made_of: the original and its batch size, from which a copy or a pickle is made anew.
    """

    def __init__(
        self,
        model: ViM,
        run: Run,
        portion: int,
        *,
        exact: bool = False,
        notes: tuple[str, ...] = (),
        made_of: tuple[ViM, int] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.run, self.portion = model, run, portion
        self.exact, self.notes, self.made_of = exact, notes, made_of
        self.training = False  # not by `eval`, which would also change the modules that the original shares

    @property
    def config(self) -> Config:
        """The config of the model that was arranged."""
        return self.model.config if self.made_of is None else self.made_of[0].config

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, classes), float32, of normalised images (B, C, H, W).

        Raises:
            UsageError: images of another kind, dtype or shape, no images, or images that require a gradient.
        """
        shape = self.model.config.model
        expected = shape.input_shape
        check_images(images, expected)
        if not images.shape[0]:
            raise UsageError(
                f"images are {tuple(images.shape)}, expected (B, {', '.join(map(str, expected))}) with B at least 1"
            )
        if images.requires_grad and torch.is_grad_enabled():
            raise UsageError(f"images require a gradient, and {_FOR_INFERENCE}", _PLAIN)
        device = self.model.cls_token.device.type
        watched = WATCH.forward() if device == "cpu" else nullcontext()
        with torch.inference_mode(), torch.autocast(device, enabled=False), watched:
            return torch.cat([self._portion(part) for part in images.split(self.portion)])

    def train(self, mode: bool = True) -> "Served":
        """Raise UsageError for `train()`: packed and recorded values have no gradient and would not follow the weights.

        `eval()`, which is `train(False)`, changes nothing.
        """
        if mode:
            raise UsageError(_FOR_INFERENCE, _PLAIN)
        return self

    def requires_grad_(self, requires_grad: bool = True) -> "Served":
        """Raise UsageError as `train` does; `requires_grad_(False)` leaves the original's parameters as they are."""
        return self.train(requires_grad)

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        """Raise UsageError: packed and recorded values would not follow other weights."""
        raise UsageError(
            "what optimize returns keeps the weights that it was made with",
            "load them into the model, and optimize that",
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Have copies and pickles hold the original, to be optimized anew.

        Packed weights and CUDA graphs belong to this process.
        """
        if self.made_of is None:
            raise UsageError("this served model does not know what it was made of", "copy the model, and optimize that")
        return optimize, self.made_of

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Served":
        """Raise UsageError for `to`, `half` and the like, which packed and recorded values cannot follow."""
        raise UsageError("what optimize returns stays where and as it is", "move or cast the model, and optimize that")

    def _portion(self, images: Tensor) -> Tensor:
        """Return the logits of at most `portion` images, (b, C, H, W)."""
        missing = self.portion - images.shape[0] if self.exact else 0
        return self.run(F.pad(images, (0,) * 7 + (missing,)))[: images.shape[0]] if missing else self.run(images)


def optimize(model: ViM, batch_size: int) -> Served:
    """Return a model arranged for serving; see `ViM.optimize`."""
    if batch_size < 1:
        raise UsageError(f"batch size is {batch_size}, expected at least 1")
    # Without autocast, all that is compared, recorded or laid out has the model's own dtype.
    with torch.autocast(model.cls_token.device.type, enabled=False):
        return _arranged(model, batch_size)


def _arranged(model: ViM, batch_size: int) -> Served:
    """Return the model arranged for its type of device."""
    device = model.cls_token.device
    if device.type == "cuda":
        return Served(model, _recorded(model, batch_size), batch_size, exact=True, made_of=(model, batch_size))
    if device.type != "cpu":
        return Served(
            model, model, batch_size, notes=(f"nothing is known to help on {device.type}",), made_of=(model, batch_size)
        )
    keep_freed()
    portion = min(batch_size, IMAGES_AT_ONCE)
    arranged, notes, dtype = model, tuple[str, ...](), TORCH_DTYPES.get(model.config.dtype, torch.float32)
    if dtype != torch.float32 and not products.in_hardware(dtype):
        arranged = copy.deepcopy(model).cast("float32")
        notes = (f"this processor has no instructions for {model.config.dtype}: its weights run in float32",)
    if model.config.dtype == INT8:
        arranged, notes = _in_c(model)
    else:
        arranged, reason = _packed(arranged, portion)
        notes += () if reason is None else (f"weights are not packed: {reason}",)
    arranged = _prepared(arranged)
    return Served(arranged, arranged, portion, notes=notes, made_of=(model, batch_size))


class PackedLinear(nn.Module):
    """share x weight^T, computed by oneDNN on a weight that is packed once, instead of at every product.

    oneDNN's operators are private to torch, so `_packed` compares every layer with the plain one before its first use.

    Args:
        weight: (out, in); the packed weight is a copy.
        share: a factor, packed with the weight.
        rows: the usual number of rows of x, for which oneDNN chooses the layout. Other numbers work, too.
    """

    def __init__(self, weight: Tensor, share: float, rows: int) -> None:
        super().__init__()
        # The plain weight stays: `Block` asks for its dtype, and a plain layer shares its memory anyway.
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.packed = products.packed(weight.detach() * share, rows)

    def forward(self, x: Tensor) -> Tensor:
        return products.onednn(x, self.packed)


def _packed(model: ViM, batch_size: int) -> tuple[ViM, str | None]:
    """Return the model with packed projections, or the model as it is and the reason.

    The last block runs on one token and stays plain. So do x_proj and dt_proj of every block: they are small, packing
    slows some of their shapes down, and prepared blocks have faster products for them.
    """
    dtype = model.config.dtype
    if not torch.backends.mkldnn.is_available():
        return model, "this torch has no oneDNN"
    if dtype == "float16":
        return model, "only float32 and bfloat16 are"
    other = model.with_plan(model.plan, model.config)
    layers: list[nn.Module] = []
    lengths = model.schedule.tokens_per_block(model.config.model.depth)
    for block, length in zip(model.blocks[:-1], lengths, strict=False):
        layers_of = {}
        for name, share in (("in_proj", 1.0), ("out_proj", block.mixer.out_proj.share)):
            linear = getattr(block.mixer, name)
            try:
                layers_of[name] = PackedLinear(linear.weight, share, batch_size * length)
                worst = _difference(linear, layers_of[name])
            except products.LACKING as error:
                return model, f"torch's operators for it cannot be used here: {said(error)}"
            # Another order of summation is within these bounds, a wrong result is not.
            if worst > {"float32": 1e-5, "bfloat16": 2e-2}[dtype]:
                return model, f"they give another result (relative difference {worst:.1e})"
        layers.append(_with(block, mixer=_with(block.mixer, **layers_of)))
    other._modules["layers"] = nn.ModuleList([*layers, model.blocks[-1]])
    return other, None


def _in_c(model: ViM) -> tuple[ViM, tuple[str, ...]]:
    """Return an int8 model whose in_proj and out_proj run in C, and what a reader should know of its speed."""
    if model.backend.name != "native":
        return model, ("int8 products run as float32 products: only the native backend has them",)
    other = model.with_plan(model.plan, model.config)
    layers: list[nn.Module] = []
    for block in model.blocks[:-1]:
        assert isinstance(block.mixer, Int8Mixer)
        layers_of = {name: Int8Product.of(getattr(block.mixer, name)) for name in ("in_proj", "out_proj")}
        layers.append(_with(block, mixer=_with(block.mixer, **layers_of)))
    other._modules["layers"] = nn.ModuleList([*layers, model.blocks[-1]])
    notes = () if has_vnni() else ("this processor has no AVX-512 VNNI: int8 products run in 16 bits",)
    return other, notes


def _prepared(model: ViM) -> ViM:
    """Return the model with prepared blocks if it runs in C, else the model as it is."""
    if model.backend.name != "native" or model.config.dtype == "float16":
        return model
    other, workspace = model.with_plan(model.plan, model.config), Workspace()
    other._modules["layers"] = nn.ModuleList(PreparedBlock(block, workspace) for block in model.blocks)
    return other


def _difference(linear: nn.Module, packed: nn.Module) -> float:
    """Return the largest difference of two layers' outputs on two rows, relative to the largest output."""
    weight = linear.weight
    assert isinstance(weight, Tensor)
    x = torch.linspace(-1, 1, 2 * weight.shape[1]).view(2, -1).to(weight.dtype)
    with torch.inference_mode():
        expected = linear(x).float()
        return float((packed(x).float() - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def _with(module: nn.Module, **children: nn.Module) -> nn.Module:
    """Return a copy of a module with other children. Parameters are shared, and the module itself does not change."""
    other = copy.copy(module)
    other._modules = {**module._modules, **children}
    return other


def _recorded(model: ViM, batch_size: int, cuda: Any = torch.cuda) -> Run:
    """Return a forward of exactly `batch_size` images, recorded as a CUDA graph.

    Args:
        cuda: torch.cuda; a test without a device passes another.
    """
    shape = model.config.model
    static = torch.zeros(batch_size, *shape.input_shape, device=model.cls_token.device)
    with torch.inference_mode():
        # torch's recipe for CUDA graphs: warm up on a side stream, so that no work of the default stream is recorded.
        side = cuda.Stream()
        side.wait_stream(cuda.current_stream())
        with cuda.stream(side):
            for _ in range(_WARM_UP):
                model(static)
        cuda.current_stream().wait_stream(side)
        graph = cuda.CUDAGraph()
        with cuda.graph(graph):
            logits = model(static)

    def replay(images: Tensor) -> Tensor:
        static.copy_(images)  # a graph reads and writes fixed addresses
        graph.replay()
        return logits.clone()  # the next replay overwrites them

    return replay
