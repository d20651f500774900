"""Vision Mamba (ViM, bimamba v2): one model, dense or compressed.

An image becomes patches, a class token joins them in the middle, or several are spread among them, and `depth` blocks
mix the sequence in both directions. Merging is a `Plan` that acts between blocks; a dense model has none, and
everything else is the same code.
Tokens stay in their order throughout: the two directions are a leading axis K of parameters and kernels, forward
first, and nothing is ever flipped.

Source: hustvl/Vim, vim/models_mamba.py and mamba-1p1p1/mamba_ssm/modules/mamba_simple.py (bimamba_type "v2"). The
letters of the shapes are those of docs/design.md.
"""

import copy
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast, overload

import torch
from torch import Tensor, nn

from stm.artifact.provenance import Mark, as_cast, as_dense, is_changed, mark, under_plan
from stm.artifact.tensors import check_images
from stm.backends import Backend, choose, status
from stm.config import INT8, Config
from stm.errors import UsageError
from stm.merging.plan import Plan, State, StaticPlan
from stm.merging.schedule import Schedule, fixed
from stm.model.layers import TORCH_DTYPES, Block, Linear, Mixer, Patches, at
from stm.model.quantized import Int8Mixer

if TYPE_CHECKING:
    from stm.model.serving import Served


class ViM(nn.Module):
    """A Vision Mamba classifier, or its backbone alone, dense or compressed.

    A backbone has no classes, and perhaps no class token: those weights are then empty, and no other code differs.

    Parameters are uninitialised until they are loaded, or drawn by `stm.model.initialize`, and require a gradient:
    `train()` and an optimizer train it, dense or compressed. Inference is cheapest in `torch.inference_mode()`.

    Args:
        config: the shape of the model, and the schedule and protection of a compressed one.
        backend: computes the convolution, the scan and the norm; by default the best available one for a processor.
    """

    def __init__(self, config: Config, backend: Backend | None = None) -> None:
        super().__init__()
        self.config = config
        # The checksum of the weights that the config describes; saving compares, and so notices that they changed.
        self.mark: Mark | None = None
        backend = backend or choose()
        model = config.model
        # These names and the shapes are the keys of `model.safetensors`.
        self.patch_embed = Patches(model.in_chans, model.d_model, model.patch, model.stride)
        self.cls_token = nn.Parameter(torch.empty(1, model.class_tokens, model.d_model))
        self.pos_embed = nn.Parameter(torch.empty(1, model.tokens, model.d_model))
        kind = Int8Mixer if config.dtype == INT8 else Mixer
        self.layers = nn.ModuleList(Block(model, backend, kind) for _ in range(model.depth))
        self.norm_f = nn.RMSNorm(model.d_model, eps=model.norm_eps)
        self.neck: Linear | None = None
        self.norm_neck: nn.RMSNorm | None = None
        if model.neck is not None:
            self.neck = Linear(model.d_model, model.neck, bias=False)
            self.norm_neck = nn.RMSNorm(model.d_head, eps=model.norm_eps)
        self.head = Linear(model.d_head, config.num_classes)
        self.plan: Plan | None = None
        if config.schedule.steps and config.protection is not None:
            self.plan = StaticPlan(config.schedule, config.protection, model)
        self.cast(config.dtype)

    @property
    def blocks(self) -> list["Block"]:
        """The blocks, typed. `layers` is the name of the ModuleList, because checkpoints use it."""
        return cast("list[Block]", list(self.layers))

    @property
    def backend(self) -> Backend:
        """The backend, which all blocks share."""
        return self.blocks[0].backend

    @property
    def schedule(self) -> Schedule:
        """The merges of this model; a dense model's schedule has no steps."""
        return self.config.schedule

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, classes), float32, of normalised images (B, C, H, W) of any floating dtype.

        Raises:
            StmError: the model is a backbone without a head.
            UsageError: images of another kind, dtype, shape or device; the message names the expected one.
        """
        self.config.check_head()
        return self.classify(self.run(self.embed(images)))

    def embed(self, images: Tensor) -> State:
        """Return the state that enters block 0: patches, the class tokens among them, plus the position embedding.

        Raises:
            UsageError: see `forward`.
        """
        model = self.config.model
        # Here, and nowhere later: every way into the model passes this line.
        check_images(images, model.input_shape, self.cls_token.device)
        patches = self.patch_embed(images.to(self.patch_embed.weight.dtype))  # (B, D, H', W')
        # The residual stream is float32 from here on, whatever the dtype of the weights.
        patches = patches.flatten(2).mT.to(self.pos_embed.dtype)  # (B, M, D)
        cls = self.cls_token.expand(patches.shape[0], -1, -1)  # (B, n, D)
        parts, first = [], 0
        for number, position in enumerate(fixed(model.cls)):
            before = position - number  # so many patches stand before this class token
            parts += [patches[:, first:before], cls[:, number : number + 1]]
            first = before
        x = torch.cat([*parts, patches[:, first:]], 1) + self.pos_embed  # (B, L, D)
        return State(x, cls=model.cls)

    def run(self, state: State, full: bool = False) -> State:
        """Run all blocks, and the plan between them; return the state that leaves the last.

        Args:
            state: what `embed` returns.
            full: compute every token of the last block too. Otherwise the last block computes only what reaches the
                class tokens, which is exact, and the returned state holds those tokens alone. A model without class
                tokens always computes all.
        """
        for state in self.leaving(state, full):  # noqa: B007, B020 - one after another, so that no more than one is kept
            pass
        return state

    def leaving(self, state: State, full: bool = False) -> Iterator[State]:
        """Yield the state that leaves each block. The plan acts on it when the next is asked for; see `run`."""
        last, full = self.config.model.depth - 1, full or not self.config.model.class_tokens
        for number, block in enumerate(self.blocks):
            if number == last and not full:
                yield block.forward_cls(state)
                return
            state, taps = block(state, self.plan.wants(number) if self.plan is not None else ())
            yield state
            if self.plan is not None and number < last:  # after the last block no merge would save anything
                state = self.plan(number, state, taps)

    def classify(self, state: State) -> Tensor:
        """Return the logits (B, classes), float32, from the class tokens of the state that leaves the last block."""
        tokens = at(state.stream, state.cls)  # (B, n, D)
        read, dtype = self.norm_f(tokens), self.head.weight.dtype
        if self.neck is not None and self.norm_neck is not None:
            read = self.norm_neck(self.neck(read.to(dtype)).flatten(1).to(tokens.dtype))
        return self.head(read.flatten(1).to(dtype)).to(tokens.dtype)

    @overload
    def features(self, images: Tensor) -> Tensor: ...

    @overload
    def features(self, images: Tensor, out_indices: Sequence[int], *, norm: bool = False) -> tuple[Tensor, ...]: ...

    def features(
        self, images: Tensor, out_indices: Sequence[int] | None = None, *, norm: bool | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """Return patch features (B, D, H', W') for dense prediction, on the full grid of patches.

        After merging there are fewer tokens than patches: each patch gets the features of the token that holds it.

        Args:
            out_indices: blocks, numbered as in timm (`forward_intermediates`): from 0, or from the end if negative. The
                result is then a tuple, one tensor per index: the residual stream that leaves that block, before the
                merge that follows it. Blocks after the last of them do not run. None: the stream that leaves the last
                block.
            norm: whether the model's last norm is applied. By default it is only if no indices are given, as in timm.

        Raises:
            UsageError: an index that is no block, or images as in `forward`.

        Examples:
            >>> import torch
            >>> model = stm.load("vim-digits")
            >>> [tuple(level.shape) for level in model.features(torch.zeros(1, 1, 28, 28), out_indices=(11, -1))]
            [(1, 32, 14, 14), (1, 32, 14, 14)]
        """
        model = self.config.model
        blocks = checked_indices((-1,) if out_indices is None else out_indices, model.depth)
        norm = out_indices is None if norm is None else norm
        levels = dict[int, Tensor]()
        for number, state in enumerate(self.leaving(self.embed(images), full=True)):
            if number in blocks:
                x = self.norm_f(state.stream) if norm else state.stream  # (B, L', D)
                holder = torch.tensor(self.schedule.holders(number), device=x.device)  # (M,)
                levels[number] = x[:, holder].mT.unflatten(-1, model.grid)  # (B, D, H', W')
            if number == max(blocks, default=-1):
                break
        return levels[blocks[0]] if out_indices is None else tuple(levels[number] for number in blocks)

    def answer(self, images: Tensor) -> Tensor:
        """Return what a merge should leave as it is: the logits, or the features of a backbone."""
        return self(images) if self.config.num_classes else self.features(images)

    def with_plan(self, plan: Plan | None, config: Config | None = None) -> "ViM":
        """Return this model under another plan; both models share every parameter.

        Args:
            plan: None for a dense model.
            config: describes the new model; by default this model's config, made dense if there is no plan.
        """
        other = copy.copy(self)
        # A shallow copy shares the dict of children, so the copy needs one of its own before `plan` is set.
        other._modules = {name: module for name, module in self._modules.items() if name != "plan"}
        other.plan = plan
        other.mark = under_plan(self.mark, plan)
        other.config = config or (self.config if plan is not None else as_dense(self.config))
        return other

    def cast(self, dtype: str) -> "ViM":
        """Give the weights of the matrix products a dtype, in place, and return the model.

        The residual stream, A, D, Delta's bias, norms and plans stay float32. What was measured holds for the dtype
        before: if the dtype changes, `config.measured` becomes empty.

        int8 takes in_proj, x_proj and out_proj alone, and equalizes them on drawn pictures (stm/quantizing.py). From
        int8 to floats the weights are those that the whole numbers stand for.
        """
        config = self.config
        # Compare before the cast, which changes the checksums. Weights that were intact are marked anew below, since a
        # cast is no training.
        intact = self.mark is not None and dtype != config.dtype and not is_changed(self, config, self.mark)
        if dtype != config.dtype and INT8 in (dtype, config.dtype):
            from stm.quantizing import from_int8, to_int8  # here, because it imports this module

            if config.dtype == INT8:
                self.layers = from_int8(self)
            else:
                self._to(torch.float32)
                self.layers = to_int8(self)
        if dtype != INT8:
            self._to(TORCH_DTYPES[dtype])
        self.config = as_cast(config, dtype)
        if intact:
            self.mark = mark(self, self.config)
        return self

    def _to(self, dtype: torch.dtype) -> None:
        for module in (self.patch_embed, self.neck, self.head):
            if module is not None:
                module.to(dtype)
        for block in self.blocks:
            block.mixer.cast(dtype)

    def optimize(self, *, batch_size: int) -> "Served":
        """Return this model arranged for inference on its device: packed weights on a processor, a CUDA graph on CUDA.

        The result shares the parameters, which must not change any more, because packed copies would not follow. It
        takes batches of any size and is fastest at `batch_size`. On a processor it has glibc keep up to 256 MB of
        freed memory (`stm.model.malloc`). It cannot be moved, cast or trained: its logits have no gradient, and
        autocast does not affect it. A copy or a pickle holds the model, and is arranged anew.

        Args:
            batch_size: images that usually come together.

        Raises:
            StmError: the model is a backbone, whose features are not served.
            UsageError: a batch size below 1.

        Examples:
            >>> import torch
            >>> served = stm.load("vim-digits").optimize(batch_size=2)
            >>> served(torch.zeros(2, 1, 28, 28)).shape
            torch.Size([2, 10])
        """
        from stm.model.serving import optimize  # here, because it imports this module

        self.config.check_head()
        return optimize(self, batch_size)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ViM":
        """Move or convert every tensor: torch's hook behind `to`, `cuda` and the like.

        If the backend does not support the new device, choose another and record the change in `fallbacks`.
        """
        nn.Module._apply(self, fn, recurse)
        device = self.cls_token.device.type
        fits, reason = status(self.backend.name, device)
        if not fits:
            chosen = choose(device=device)
            change = f"{self.backend.name} was left for {chosen.name}: {reason}"
            chosen = dataclasses.replace(chosen, fallbacks=(change, *chosen.fallbacks))
            for block in self.blocks:
                block.backend = block.mixer.backend = chosen
        return self

    def save_pretrained(self, folder: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write a self-contained folder: `model.safetensors`, `config.json` and a model card. `stm.load` reads it.

        Args:
            force: replace a folder that holds a model of ours and nothing else.

        Raises:
            UsageError: the folder exists and may not be replaced, or its place is not writable.
            ArtifactError: writing failed; the folder that was there before is untouched.

        Examples:
            >>> stm.load("vim-digits").save_pretrained("digits")
            >>> digits = stm.load("digits")
        """
        from stm.saving import save  # here, because it imports this module

        self.config = save(self, folder, force=force)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        revision: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        token: str | None = None,
        exist_ok: bool = True,
        overwrite_card: bool = False,
    ) -> str:
        """Write the model to a Hub repository, card included, in one commit; `stm.load(repo_id)` reads it.

        Args:
            repo_id: OWNER/NAME, or NAME for a repository of one's own; created if it is missing.
            private: whether only the owner, and people whom the owner chooses, may see a new repository.
            revision: the branch; created if it is missing.
            commit_message: the title of the commit.
            create_pr: propose the commit as a pull request.
            token: a token of the Hub; by default that of the current login.
            exist_ok: whether the repository may exist already.
            overwrite_card: replace a README.md that stm did not write.

        Returns:
            The address of the repository, or of the pull request.

        Raises:
            HubError: the repository is not writable, exists although it may not, or is out of reach.
            UsageError: options that exclude each other.
        """
        from stm.hub.push import PushOptions, push_model  # here, because the runtime works without it

        to = PushOptions(
            repo=repo_id,
            private=private,
            revision=revision,
            commit_message=commit_message,
            create_pr=create_pr,
            token=token,
            exist_ok=exist_ok,
            overwrite_card=overwrite_card,
        )
        return push_model(self, to).url

    def preprocess(self, images: Any) -> Tensor:
        """Return a Pillow image, or several, as (B, C, H, W) for this model, on its device; see `stm.preprocess`."""
        from stm.inputs import preprocess  # here, because the runtime works without Pillow

        return preprocess(images, self)

    @classmethod
    def from_pretrained(cls, folder_or_repo: str | os.PathLike[str], **options: Any) -> "ViM":
        """Load a model as `stm.load` does, with the same options."""
        from stm.loading import load  # here, because it imports this module

        return load(folder_or_repo, **options)


def checked_indices(out_indices: Sequence[int], depth: int) -> tuple[int, ...]:
    """Return the numbers of blocks that indices name, in their order; negative ones count from the end.

    Raises:
        UsageError: no index, one that is no block, or one that is no integer.
    """
    if not out_indices:
        raise UsageError("out_indices is empty, expected the numbers of blocks, such as (5, 11, 17, 23)")
    for index in out_indices:
        if type(index) is not int or not -depth <= index < depth:
            raise UsageError(f"out_indices has {index!r}, expected blocks 0 to {depth - 1}, or {-depth} to -1")
    return tuple(index % depth for index in out_indices)
