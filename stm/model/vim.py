"""Vision Mamba (ViM, bimamba v2): one model for dense and compressed, in token order throughout.

Source: hustvl/Vim, vim/models_mamba.py and mamba-1p1p1/mamba_ssm/modules/mamba_simple.py (bimamba_type "v2"). The two
    directions
of a mixer are a leading axis K of its parameters, forward first; nothing is ever flipped. Merging is a Plan between
blocks.
"""

import copy
import dataclasses
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from stm.artifact.provenance import Mark, as_cast, as_dense, is_changed, mark, under_plan
from stm.artifact.tensors import check_images
from stm.backends import Backend, choose, status
from stm.config import Config
from stm.merging.plan import Plan, State, StaticPlan
from stm.merging.schedule import Schedule

if TYPE_CHECKING:
    from stm.model.serving import Served
from stm.model.layers import TORCH_DTYPES, Block, Linear, Patches, at


class ViM(nn.Module):
    """A Vision Mamba classifier, dense or compressed.

    Parameters are uninitialised until they are loaded, or drawn by `stm.model.initialize`, and require a gradient:
    `train()` and an optimizer train it, dense or compressed. Inference is cheapest in `torch.inference_mode()`.

    Args:
        config: its shape, and its schedule where it is compressed.
        backend: who computes the scan; the best that is available by default.
    """

    def __init__(self, config: Config, backend: Backend | None = None) -> None:
        super().__init__()
        self.config = config
        self.mark: Mark | None = None  # of the weights that the config speaks of
        backend = backend or choose()
        model = config.model
        self.patch_embed = Patches(model.in_chans, model.d_model, model.patch, model.stride)
        self.cls_token = nn.Parameter(torch.empty(1, 1, model.d_model))
        self.pos_embed = nn.Parameter(torch.empty(1, model.tokens, model.d_model))
        self.layers = nn.ModuleList(Block(model, backend) for _ in range(model.depth))
        self.norm_f = nn.RMSNorm(model.d_model, eps=model.norm_eps)
        self.head = Linear(model.d_model, config.num_classes)
        self.plan: Plan | None = None
        if config.schedule.steps and config.protection is not None:
            self.plan = StaticPlan(config.schedule, config.protection, model)
        self.cast(config.dtype)

    @property
    def blocks(self) -> list["Block"]:
        """`layers`, by their type."""
        return cast("list[Block]", list(self.layers))

    @property
    def backend(self) -> Backend:
        """Who computes the blocks: all have the same one."""
        return self.blocks[0].backend

    @property
    def schedule(self) -> Schedule:
        """Its merges: none where it is dense."""
        return self.config.schedule

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes), float32, of normalised images (B, C, H, W) of any floating dtype.

        Raises:
            UsageError: images of another kind, dtype, shape or device; the sentence says what was expected.
        """
        return self.classify(self.run(self.embed(images)))

    def embed(self, images: Tensor) -> State:
        """What enters block 0: patches with the class token in its place, plus the position embedding."""
        model = self.config.model
        check_images(images, (model.in_chans, model.image_size, model.image_size), self.cls_token.device)
        patches = (
            self.patch_embed(images.to(self.patch_embed.weight.dtype)).flatten(2).mT.to(self.pos_embed.dtype)
        )  # (B, L - 1, D)
        cls = self.cls_token.expand(patches.shape[0], -1, -1)  # (B, 1, D)
        x = torch.cat([patches[:, : model.cls], cls, patches[:, model.cls :]], 1) + self.pos_embed  # (B, L, D)
        return State(x, cls=model.cls)

    def run(self, state: State, full: bool = False) -> State:
        """All blocks. Without `full` the last one computes only what reaches the class token, exactly, and leaves it
        alone."""
        last = self.config.model.depth - 1
        for number, block in enumerate(self.blocks):
            if number == last and not full:
                return block.forward_cls(state)
            state, taps = block(state, self.plan.wants(number) if self.plan is not None else ())
            if self.plan is not None and number < last:
                state = self.plan(number, state, taps)
        return state

    def classify(self, state: State) -> Tensor:
        """Logits (B, classes), float32, from the class token of what leaves the last block."""
        token = at(state.stream, state.cls)  # (B, D)
        return self.head(self.norm_f(token).to(self.head.weight.dtype)).to(token.dtype)

    def features(self, images: Tensor) -> Tensor:
        """Normalised patch features (B, D, H', W') for dense prediction: each patch gets those of the token that holds
        it."""
        state = self.run(self.embed(images), full=True)
        x = self.norm_f(state.stream)  # (B, L, D)
        holder = [0] * self.schedule.tokens
        for token, group in enumerate(self.schedule.groups[-1]):
            for position in group:
                holder[position] = token
        del holder[self.schedule.cls]
        grid = self.config.model.grid
        return x[:, torch.tensor(holder, device=x.device)].mT.unflatten(-1, (grid, grid))

    def with_plan(self, plan: Plan | None, config: Config | None = None) -> "ViM":
        """This model under another plan, sharing every parameter. `config` says what the new one is; without a plan it
        is dense."""
        other = copy.copy(self)
        other._modules = {name: module for name, module in self._modules.items() if name != "plan"}
        other.plan = plan
        other.mark = under_plan(self.mark, plan)
        other.config = config or (self.config if plan is not None else as_dense(self.config))
        return other

    def cast(self, dtype: str) -> "ViM":
        """Give the GEMMs' weights a dtype, in place. The residual stream, A, D, Delta's bias, norms and plans stay
        float32.

        In another dtype than it had nothing was measured: `config.measured` is then empty.
        """
        to, config = TORCH_DTYPES[dtype], self.config
        intact = self.mark is not None and dtype != config.dtype and not is_changed(self, config, self.mark)
        for module in (self.patch_embed, self.head):
            module.to(to)
        for block in self.blocks:
            block.mixer.cast(to)
        self.config = as_cast(config, dtype)
        if intact:
            self.mark = mark(self, self.config)
        return self

    def optimize(self, *, batch_size: int) -> "Served":
        """This model ready to serve, for inference where it is: packed weights on a processor, a CUDA graph on a CUDA
        device.

        It shares the parameters, which must not change any more: what is packed would not. It takes batches of any
            size, best of this
        one, and on a processor has glibc keep up to 256 MB of freed memory (`stm.model.malloc`). It cannot be moved,
        cast or trained: its logits have no gradient. A copy or a pickle holds the model, and is served anew. Autocast
        changes nothing in it.

        Args:
            batch_size: images that usually come together.

        Raises:
            UsageError: a batch size below 1.
        """
        from stm.model.serving import optimize  # it imports this module

        return optimize(self, batch_size)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ViM":
        """What `to`, `cuda` and the like do. On a device that the backend is not for another is chosen, and its
        fallbacks say so."""
        nn.Module._apply(self, fn, recurse)
        device = self.cls_token.device.type
        fits, reason = status(self.backend.name, device)
        if not fits:
            chosen = choose(device=device)
            left = f"{self.backend.name} was left for {chosen.name}: {reason}"
            chosen = dataclasses.replace(chosen, fallbacks=(left, *chosen.fallbacks))
            for block in self.blocks:
                block.backend = block.mixer.backend = chosen
        return self

    def save_pretrained(self, folder: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write a self-contained folder: `model.safetensors`, `config.json` and a model card. `stm.load` reads it.

        Args:
            force: replace a folder that holds a model of ours and nothing else.

        Raises:
            UsageError: the folder exists and may not be replaced, or nothing can be written there.
            ArtifactError: it cannot be written; what was there before is untouched.
        """
        from stm.saving import save  # it imports this module

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
            repo_id: OWNER/NAME, or NAME of one's own; made where it is missing.
            private: only its owner and those they choose may see it.
            revision: the branch; made where it is missing.
            create_pr: propose the commit as a pull request.
            token: of the Hub; by default the one that was logged in with.
            exist_ok: whether the repository may exist.
            overwrite_card: replace a README.md that stm did not write.

        Returns:
            Its address, or that of the pull request.

        Raises:
            HubError: it may not be written, exists and may not, or cannot be reached.
            UsageError: options that exclude each other.
        """
        from stm.hub.push import PushOptions, push_model  # not part of the runtime

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

    @classmethod
    def from_pretrained(cls, folder_or_repo: str | os.PathLike[str], **options: Any) -> "ViM":
        """As `stm.load`, whose options it takes."""
        from stm.loading import load  # it imports this module

        return load(folder_or_repo, **options)
