"""Vision Mamba (ViM, bimamba v2): one model for dense and compressed, in token order throughout.

Source: hustvl/Vim, vim/models_mamba.py and mamba-1p1p1/mamba_ssm/modules/mamba_simple.py (bimamba_type "v2"). The two directions
of a mixer are a leading axis K of its parameters, forward first; nothing is ever flipped. Merging is a Plan between blocks.
"""

import copy
import dataclasses
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stm.artifact.provenance import Mark, as_cast, as_dense, is_changed, mark, under_plan
from stm.artifact.tensors import check_images
from stm.backends import Backend, choose, status
from stm.backends.reference import gated, projected, step_sizes
from stm.config import Config, ModelConfig
from stm.merging.plan import Plan, State, StaticPlan, Taps
from stm.merging.schedule import Schedule

if TYPE_CHECKING:
    from stm.model.serving import Served

REVERSE = (False, True)  # how the directions walk
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ViM(nn.Module):
    """A Vision Mamba classifier, dense or compressed.

    Parameters are uninitialised until they are loaded, or drawn by `stm.model.initialize`, and require a gradient: `train()` and an
    optimizer train it, dense or compressed. Inference is cheapest in `torch.inference_mode()`.

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
        patches = self.patch_embed(images.to(self.patch_embed.weight.dtype)).flatten(2).mT.to(self.pos_embed.dtype)  # (B, L - 1, D)
        cls = self.cls_token.expand(patches.shape[0], -1, -1)  # (B, 1, D)
        x = torch.cat([patches[:, : model.cls], cls, patches[:, model.cls :]], 1) + self.pos_embed  # (B, L, D)
        return State(x, cls=model.cls)

    def run(self, state: State, full: bool = False) -> State:
        """All blocks. Without `full` the last one computes only what reaches the class token, exactly, and leaves it alone."""
        last = self.config.model.depth - 1
        for number, block in enumerate(self.blocks):
            if number == last and not full:
                return block.read(state)
            state, taps = block(state, self.plan.wants(number) if self.plan is not None else ())
            if self.plan is not None and number < last:
                state = self.plan(number, state, taps)
        return state

    def classify(self, state: State) -> Tensor:
        """Logits (B, classes), float32, from the class token of what leaves the last block."""
        token = at(state.stream, state.cls)  # (B, D)
        return self.head(self.norm_f(token).to(self.head.weight.dtype)).to(token.dtype)

    def features(self, images: Tensor) -> Tensor:
        """Normalised patch features (B, D, H', W') for dense prediction: each patch gets those of the token that holds it."""
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
        """This model under another plan, sharing every parameter. `config` says what the new one is; without a plan it is dense."""
        other = copy.copy(self)
        other._modules = {name: module for name, module in self._modules.items() if name != "plan"}
        other.plan = plan
        other.mark = under_plan(self.mark, plan)
        other.config = config or (self.config if plan is not None else as_dense(self.config))
        return other

    def cast(self, dtype: str) -> "ViM":
        """Give the GEMMs' weights a dtype, in place. The residual stream, A, D, Delta's bias, norms and plans stay float32.

        In another dtype than it had nothing was measured: `config.measured` is then empty.
        """
        to, config = DTYPES[dtype], self.config
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
        """This model ready to serve, for inference where it is: packed weights on a processor, a CUDA graph on a CUDA device.

        It shares the parameters, which must not change any more: what is packed would not. It takes batches of any size, best of this
        one, and on a processor has glibc keep up to 256 MB of freed memory (`stm.model.malloc`). It cannot be moved, cast or trained: its
        logits have no gradient. A copy or a pickle holds the model, and is served anew. Autocast changes nothing in it.

        Args:
            batch_size: images that usually come together.

        Raises:
            UsageError: a batch size below 1.
        """
        from stm.model.serving import optimize  # it imports this module

        return optimize(self, batch_size)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ViM":
        """What `to`, `cuda` and the like do. On a device that the backend is not for another is chosen, and its fallbacks say so."""
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
        from stm.loading import save  # it imports this module

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
        from stm.hub.push import To, push_model  # not part of the runtime

        to = To(
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


def at(x: Tensor, position: int | Tensor) -> Tensor:
    """The token of x (..., L, D) at a position, or of x (B, L, D) at one an image (B,): (..., D)."""
    if isinstance(position, int):
        return x[..., position, :]
    return x[torch.arange(x.shape[0], device=x.device), position]


class Linear(nn.Linear):
    """One that stays uninitialised: its weights come from a file. (`skip_init` would go through the meta device, which imports
    the compiler.)"""

    def reset_parameters(self) -> None:
        pass


class OutProjection(Linear):
    """The product with each direction's share of the output in it, which takes no pass of its own."""

    def __init__(self, d_inner: int, d_model: int, share: float) -> None:
        super().__init__(d_inner, d_model, bias=False)
        self.share = share

    def forward(self, y: Tensor) -> Tensor:
        """y (..., E): (..., D)."""
        out = torch.addmm(y.new_empty(()), y.flatten(0, -2), self.weight.mT, beta=0, alpha=self.share)
        return out.unflatten(0, y.shape[:-1])


class Patches(nn.Conv2d):
    """The patch embedding, uninitialised as `Linear`."""

    def reset_parameters(self) -> None:
        pass


def seen_by(direction: int, c: int | Tensor) -> tuple[slice, int | Tensor]:
    """The tokens that a direction passes up to the class token at c, and c's place among them."""
    if not isinstance(c, int):
        return slice(None), c
    return (slice(c, None), 0) if REVERSE[direction] else (slice(0, c + 1), c)


class Block(nn.Module):
    """`residual += hidden; hidden = mixer(RMSNorm(residual))`, the residual in float32."""

    def __init__(self, model: ModelConfig, backend: Backend) -> None:
        super().__init__()
        self.backend = backend
        self.norm = nn.RMSNorm(model.d_model, eps=model.norm_eps)
        self.mixer = Mixer(model, backend)

    def forward(self, state: State, wants: tuple[str, ...] = ()) -> tuple[State, Taps]:
        x, u = self._add_norm(state)
        h, taps = self.mixer(u, state, wants)
        return state._replace(x=x, h=h), taps

    def read(self, state: State) -> State:
        """The last block: only the class token (B, 1, D), and only what reaches it."""
        x, u = self._add_norm(state)
        return State(at(x, state.cls)[:, None], self.mixer.read(u, state)[:, None])

    def _add_norm(self, state: State) -> tuple[Tensor, Tensor]:
        assert self.norm.eps is not None
        return self.backend.add_norm(state.x, state.h, self.norm.weight, self.norm.eps, self.mixer.in_proj.weight.dtype)


class Mixer(nn.Module):
    """The bidirectional selective state-space mixer. Parameters of the two directions are stacked, forward first."""

    def __init__(self, model: ModelConfig, backend: Backend) -> None:
        super().__init__()
        self.backend = backend
        D, E, N, R, K, W = model.d_model, model.d_inner, model.d_state, model.dt_rank, len(REVERSE), model.d_conv
        self.splits = [R, N, N]
        self.in_proj = Linear(D, 2 * E, bias=False)
        self.conv1d_weight = nn.Parameter(torch.empty(K, E, W))
        self.conv1d_bias = nn.Parameter(torch.empty(K, E))
        self.x_proj_weight = nn.Parameter(torch.empty(K, R + 2 * N, E))
        self.dt_proj_weight = nn.Parameter(torch.empty(K, E, R))
        self.dt_proj_bias = nn.Parameter(torch.empty(K, E))
        self.A_log = nn.Parameter(torch.empty(K, E, N))
        self.D = nn.Parameter(torch.empty(K, E))
        self.out_proj = OutProjection(E, D, share=1 / K if model.divide_out else 1.0)

    def forward(self, u: Tensor, state: State, wants: tuple[str, ...] = ()) -> tuple[Tensor, Taps]:
        """u (B, L, D): the output (B, L, D), and the taps that were wanted."""
        x, z = self.in_proj(u).chunk(2, -1)  # (B, L, E)
        x = self.backend.conv_silu(x, self.conv1d_weight, self.conv1d_bias, REVERSE, sizes=state.span)  # (K, B, L, E)
        dt, B, C = self._select(x, slice(None))
        A, dt_weight, split = self.rates(), cast("Tensor | None", self.dt_proj_weight), "y" in wants
        if "delta" in wants:
            dt, dt_weight = projected(dt, dt_weight), None
        y = self.backend.scan(
            *(x, dt, A, B, C, self.D, z, REVERSE),
            dt_weight=dt_weight,
            dt_bias=self.dt_proj_bias,
            scale=state.scale,
            gap=state.gap,
            h0=state.h0,
            split=split,
        )
        taps = Taps(
            delta=step_sizes(dt, state.scale, self.dt_proj_bias) if "delta" in wants else None,
            B=B if "B" in wants else None,
            C=C if "C" in wants else None,
            A=A if "A" in wants else None,
            y=y if split else None,
            z=z if "z" in wants else None,
            u=x if "u" in wants else None,
        )
        return self.out_proj(gated(y, z) if split else y), taps

    def read(self, u: Tensor, state: State) -> Tensor:
        """What forward gives at the class token, (B, D), from the tokens that each direction passes on its way there.

        Where its place differs from image to image, both directions pass all of them.
        """
        c = state.cls
        to_x, to_z = self.in_proj.weight.chunk(2)  # (E, D)
        inputs, z = F.linear(u, to_x), F.linear(at(u, c), to_z)  # (B, L, E), (B, E)
        A, at_c = self.rates(), []
        for k in range(len(REVERSE)):
            one = slice(k, k + 1)
            seen, here = seen_by(k, c)
            span = None if state.span is None else state.span[seen]
            x = self.backend.conv_silu(inputs[:, seen], self.conv1d_weight[one], self.conv1d_bias[one], REVERSE[one], sizes=span)
            dt, B, C = self._select(x, one)
            y = self.backend.scan(
                *(x, dt, A[one], B, C, self.D[one], None, REVERSE[one]),
                dt_weight=self.dt_proj_weight[one],
                dt_bias=self.dt_proj_bias[one],
                scale=None if state.scale is None else state.scale[..., seen],
                gap=None if state.gap is None else state.gap[one, :, seen],
                h0=None if state.h0 is None else state.h0[one],
                split=True,
            )
            at_c.append(at(y[0], here))  # (B, E)
        return self.out_proj(gated(torch.stack(at_c), z))

    def cast(self, dtype: torch.dtype) -> None:
        """Give the GEMMs' weights a dtype."""
        self.in_proj.to(dtype)
        self.out_proj.to(dtype)
        for name in ("x_proj_weight", "dt_proj_weight"):
            weight = getattr(self, name)
            setattr(self, name, nn.Parameter(weight.detach().to(dtype), requires_grad=weight.requires_grad))

    def rates(self) -> Tensor:
        """A (K, E, N), negative."""
        return -self.A_log.exp()

    def _select(self, x: Tensor, k: slice) -> tuple[Tensor, Tensor, Tensor]:
        """dt (K, B, L, R) that makes Delta, B and C (K, B, L, N) of the directions k, from their inputs x (K, B, L, E)."""
        selected = torch.bmm(x.flatten(1, 2), self.x_proj_weight[k].mT)  # (K, B L, R + N + N)
        dt, B, C = selected.unflatten(1, x.shape[1:3]).split(self.splits, -1)
        return dt, B, C
