"""What a ViM is built of: patches, blocks, and the mixer with its two directions."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stm.backends import Backend
from stm.backends.reference import gated, projected, step_sizes
from stm.config import ModelConfig
from stm.merging.plan import State, Taps

REVERSE: tuple[bool, ...] = (False, True)  # how the directions walk
TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def at(x: Tensor, position: int | Tensor) -> Tensor:
    """The token of x (..., L, D) at a position, or of x (B, L, D) at one an image (B,): (..., D)."""
    if isinstance(position, int):
        return x[..., position, :]
    return x[torch.arange(x.shape[0], device=x.device), position]


class Linear(nn.Linear):
    """One that stays uninitialised: its weights come from a file. (`skip_init` would go through the meta device, which
    imports the compiler.)"""

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

    def forward_cls(self, state: State) -> State:
        """The last block: only the class token (B, 1, D), and only what reaches it."""
        x, u = self._add_norm(state)
        return State(at(x, state.cls)[:, None], self.mixer.forward_cls(u, state)[:, None])

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
        x = self.backend.conv_silu(
            x, self.conv1d_weight, self.conv1d_bias, REVERSE, sizes=state.token_sizes
        )  # (K, B, L, E)
        dt, B, C = self._select(x, slice(None))
        A, dt_weight, split = self.decay_rates(), cast("Tensor | None", self.dt_proj_weight), "y" in wants
        if "delta" in wants:
            dt, dt_weight = projected(dt, dt_weight), None
        y = self.backend.scan(
            u=x,
            dt=dt,
            A=A,
            B=B,
            C=C,
            D=self.D,
            z=z,
            reverse=REVERSE,
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

    def forward_cls(self, u: Tensor, state: State) -> Tensor:
        """What forward gives at the class token, (B, D), from the tokens that each direction passes on its way there.

        Where its place differs from image to image, both directions pass all of them.
        """
        c = state.cls
        to_x, to_z = self.in_proj.weight.chunk(2)  # (E, D)
        inputs, z = F.linear(u, to_x), F.linear(at(u, c), to_z)  # (B, L, E), (B, E)
        A, at_c = self.decay_rates(), []
        for k in range(len(REVERSE)):
            one = slice(k, k + 1)
            seen, here = seen_by(k, c)
            span = None if state.token_sizes is None else state.token_sizes[seen]
            x = self.backend.conv_silu(
                inputs[:, seen], self.conv1d_weight[one], self.conv1d_bias[one], REVERSE[one], sizes=span
            )
            dt, B, C = self._select(x, one)
            y = self.backend.scan(
                u=x,
                dt=dt,
                A=A[one],
                B=B,
                C=C,
                D=self.D[one],
                z=None,
                reverse=REVERSE[one],
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

    def decay_rates(self) -> Tensor:
        """A (K, E, N), negative."""
        return -self.A_log.exp()

    def _select(self, x: Tensor, k: slice) -> tuple[Tensor, Tensor, Tensor]:
        """dt (K, B, L, R) that makes Delta, B and C (K, B, L, N) of the directions k, from their inputs x (K, B, L,
        E)."""
        selected = torch.bmm(x.flatten(1, 2), self.x_proj_weight[k].mT)  # (K, B L, R + N + N)
        dt, B, C = selected.unflatten(1, x.shape[1:3]).split(self.splits, -1)
        return dt, B, C
