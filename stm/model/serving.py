"""A model ready to serve: the same function, arranged for one batch size on the machine it is on.

On a processor the matrix products of the blocks take packed weights (oneDNN's layout), what does not depend on the
images is computed once, and the allocator of the process is told to keep what a forward frees. On a CUDA device the
whole forward is recorded once as a CUDA graph and replayed. What is packed or recorded lives only in what `optimize`
returns; what it could not do is in its notes.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stm.artifact.tensors import check_images
from stm.errors import UsageError
from stm.model.malloc import keep_freed
from stm.model.prepared import PreparedBlock, Workspace
from stm.model.vim import ViM

# images on a processor: of ViM-S an image takes 1.02 times as long alone, and 1.10 times among 32 (memory new each
# time)
IMAGES_AT_ONCE = 8
_FOR_INFERENCE = "what optimize returns is for inference alone: its logits have no gradient"
_PLAIN = "train the model that optimize was called on, then optimize it again"
_WARM_UP = 3  # forwards before a CUDA graph is recorded: kernels are compiled and chosen in the first

Run = Callable[[Tensor], Tensor]


class Served(nn.Module):
    """Logits of normalised images, for inference only. Batches of any size are taken in portions.

    They have no gradient, and no autocast changes them: what is packed, recorded or laid out has its dtype.

    Args:
        model: what was arranged; its parameters are the original's.
        run: logits (b, classes) of a portion (b, C, H, W).
        portion: the images that `run` takes.
        exact: `run` takes no fewer: a smaller portion is filled up with zeros, and their logits are dropped.
        notes: what could not be done, in sentences.
        made_of: the original and the batch size, of which a copy is made anew.
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
        self.model, self.run, self.portion, self.exact, self.notes, self.made_of = (
            model,
            run,
            portion,
            exact,
            notes,
            made_of,
        )
        self.training = False  # `eval` would also change what it shares with the original

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes), float32, of normalised images (B, C, H, W).

        Raises:
            UsageError: images of another kind, dtype or shape, none at all, or some that want a gradient.
        """
        shape = self.model.config.model
        expected = (shape.in_chans, shape.image_size, shape.image_size)
        check_images(images, expected)
        if not images.shape[0]:
            raise UsageError(
                f"images are {tuple(images.shape)}, expected (B, {', '.join(map(str, expected))}) with B at least 1"
            )
        if images.requires_grad and torch.is_grad_enabled():
            raise UsageError(f"images require a gradient, and {_FOR_INFERENCE}", _PLAIN)
        with torch.inference_mode(), torch.autocast(self.model.cls_token.device.type, enabled=False):
            return torch.cat([self._portion(part) for part in images.split(self.portion)])

    def train(self, mode: bool = True) -> "Served":
        """Refuse to be trained: what is packed, recorded or laid out has no gradient, and would not follow the
        weights."""
        if mode:
            raise UsageError(_FOR_INFERENCE, _PLAIN)
        return self

    def requires_grad_(self, requires_grad: bool = True) -> "Served":
        """Refuse as `train` does. Without a gradient it is already; the original's parameters stay as they are."""
        return self.train(requires_grad)

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        """Refuse other weights, which what is packed, recorded or laid out would not follow."""
        raise UsageError(
            "what optimize returns keeps the weights that it was made with",
            "load them into the model, and optimize that",
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        """What copies and pickles hold: the original, which is served anew. Packed weights and recordings are of this
        process."""
        if self.made_of is None:
            raise UsageError("this served model does not know what it was made of", "copy the model, and optimize that")
        return optimize, self.made_of

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Served":
        """What `to`, `half` and the like do: what is packed, recorded or laid out cannot follow."""
        raise UsageError("what optimize returns stays where and as it is", "move or cast the model, and optimize that")

    def _portion(self, images: Tensor) -> Tensor:
        missing = self.portion - images.shape[0] if self.exact else 0
        return self.run(F.pad(images, (0,) * 7 + (missing,)))[: images.shape[0]] if missing else self.run(images)


def optimize(model: ViM, batch_size: int) -> Served:
    """See `ViM.optimize`."""
    if batch_size < 1:
        raise UsageError(f"batch size is {batch_size}, expected at least 1")
    with torch.autocast(
        model.cls_token.device.type, enabled=False
    ):  # what is compared, recorded or laid out has the model's dtype
        return _arranged(model, batch_size)


def _arranged(model: ViM, batch_size: int) -> Served:
    device = model.cls_token.device
    if device.type == "cuda":
        return Served(model, _recorded(model, batch_size), batch_size, exact=True, made_of=(model, batch_size))
    if device.type != "cpu":
        return Served(
            model, model, batch_size, notes=(f"nothing is known to help on {device.type}",), made_of=(model, batch_size)
        )
    keep_freed()
    portion = min(batch_size, IMAGES_AT_ONCE)
    packed, reason = _packed(model, portion)
    arranged = _prepared(packed)
    notes = () if reason is None else (f"weights are not packed: {reason}",)
    return Served(arranged, arranged, portion, notes=notes, made_of=(model, batch_size))


class PackedLinear(nn.Module):
    """share x weight^T, by oneDNN on a weight that is already in its layout.

    `torch.ops.mkldnn` is private to torch: `_packed` compares every layer with the plain one before it is used.

    Args:
        weight: (out, in), which stays as it is.
        share: a factor.
        rows: of x, as a hint for the layout; others work.
    """

    def __init__(self, weight: Tensor, share: float, rows: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach() * share, rows)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")
        return out


def _packed(model: ViM, batch_size: int) -> tuple[ViM, str | None]:
    """The model with packed projections in all blocks but the last, which runs on one token; or as it is, and why.

    x_proj and dt_proj stay: they are small, packing slows some of their shapes, and prepared blocks have something
        better.
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
            except (
                AttributeError,
                RuntimeError,
                NotImplementedError,
            ) as error:  # private operators: gone, or not for this processor
                return model, f"torch's operators for it cannot be used here: {str(error).splitlines()[0]}"
            if worst > {"float32": 1e-5, "bfloat16": 2e-2}[dtype]:
                return model, f"they give another result (relative difference {worst:.1e})"
        layers.append(_with(block, mixer=_with(block.mixer, **layers_of)))
    other._modules["layers"] = nn.ModuleList([*layers, model.blocks[-1]])
    return other, None


def _prepared(model: ViM) -> ViM:
    """The model with prepared blocks, where they run in C and float32."""
    if model.backend.name != "native" or model.config.dtype != "float32":
        return model
    other, workspace = model.with_plan(model.plan, model.config), Workspace()
    other._modules["layers"] = nn.ModuleList(PreparedBlock(block, workspace) for block in model.blocks)
    return other


def _difference(linear: nn.Module, packed: nn.Module) -> float:
    """The largest difference on two rows, relative to the largest value."""
    weight = linear.weight
    assert isinstance(weight, Tensor)
    x = torch.linspace(-1, 1, 2 * weight.shape[1]).view(2, -1).to(weight.dtype)
    with torch.inference_mode():
        expected = linear(x).float()
        return float((packed(x).float() - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def _with(module: nn.Module, **children: nn.Module) -> nn.Module:
    """The same module with other children; parameters are shared."""
    other = copy.copy(module)
    other._modules = {**module._modules, **children}
    return other


def _recorded(model: ViM, batch_size: int, cuda: Any = torch.cuda) -> Run:
    """A forward of so many images as a CUDA graph. `cuda` is torch.cuda; a test without a device passes another."""
    shape = model.config.model
    static = torch.zeros(batch_size, shape.in_chans, shape.image_size, shape.image_size, device=model.cls_token.device)
    with torch.inference_mode():
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
        static.copy_(images)
        graph.replay()
        return logits.clone()  # the next replay writes there

    return replay
