"""The parts of a ViM: the patch embedding, the blocks, and the mixer with its two directions.

A block is Mamba's: RMSNorm, `in_proj`, a causal convolution, the selective scan, `out_proj`. A ViM has no causal order
of its own, so its mixer walks the tokens twice, forward and backward, and adds the two outputs.

Source: hustvl/Vim, mamba-1p1p1/mamba_ssm/modules/mamba_simple.py (`Mamba`, bimamba_type "v2"). The letters of the
shapes are those of docs/design.md.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stm.backends import Backend
from stm.backends.reference import gated, projected, step_sizes
from stm.config import ModelConfig
from stm.merging.plan import State, Taps
from stm.merging.schedule import Fixed, fixed
from stm.model import products

REVERSE: tuple[bool, ...] = (False, True)  # per direction, whether it walks from the last token to the first
TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def at(x: Tensor, position: Fixed | Tensor) -> Tensor:
    """Return the n tokens of x at a position, or at several.

    Args:
        x: (..., L, D); (B, L, D) if the position is a tensor.
        position: the same for every image, or one per image, (B,).

    Returns:
        (..., n, D).
    """
    if isinstance(position, Tensor):
        return x[torch.arange(x.shape[0], device=x.device), position][:, None]
    if isinstance(position, int):
        return x[..., position : position + 1, :]
    # Views, not a list of indices: that would be copied to the device, which no CUDA graph can record.
    return torch.cat([x[..., p : p + 1, :] for p in position], -2)


def first_places(cls: Fixed | Tensor) -> Fixed:
    """Return where the class tokens are if they are the whole sequence."""
    return tuple(range(len(cls))) if isinstance(cls, tuple) else 0


class Linear(nn.Linear):
    """A linear layer that starts uninitialised, because its weights come from a file.

    torch's `skip_init` does the same by way of the meta device, which imports the compiler.
    """

    def reset_parameters(self) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        """Return x weight^T + bias, (..., out), for x (..., in)."""
        # The bias is the head's, whose product is too small to matter.
        return products.linear(x, self.weight) if self.bias is None else super().forward(x)


class OutProjection(Linear):
    """`out_proj` with the average over the directions folded in.

    Args:
        d_inner: E.
        d_model: D.
        share: the factor of the sum over the directions, 1 / K for an average. The product applies it for free; a
            division of its own would read and write the whole output once more.
    """

    def __init__(self, d_inner: int, d_model: int, share: float) -> None:
        super().__init__(d_inner, d_model, bias=False)
        self.share = share

    def forward(self, y: Tensor) -> Tensor:
        """Project y (..., E) to (..., D)."""
        return products.linear(y, self.weight, self.share)


class ScanNorm(nn.LayerNorm):
    """LayerNorm of the directions' average, or of their sum, before the gate.

    Source: insitro/FastVim, mamba-1p1p1/mamba_ssm/modules/mamba_simple.py (`use_norm_after_ssm`).
    """

    def __init__(self, d_inner: int, share: float) -> None:
        super().__init__(d_inner)
        self.share = share

    def forward(self, y: Tensor) -> Tensor:
        """Return (B, L, E) from y (K, B, L, E)."""
        return super().forward((y.sum(0) * self.share).to(self.weight.dtype)).to(y.dtype)


class Patches(nn.Conv2d):
    """The patch embedding, uninitialised for the same reason as `Linear`."""

    def reset_parameters(self) -> None:
        pass


def seen_by(direction: int, c: Fixed | Tensor) -> tuple[slice, Fixed | Tensor]:
    """Return the tokens that a direction passes up to the class tokens at c, and the positions of c among them.

    A scan is causal: what a direction passes after the last class token cannot change its output there. If the
    position differs per image, one slice cannot serve the batch, and the direction passes all tokens.
    """
    if isinstance(c, Tensor):
        return slice(None), c
    first, last = fixed(c)[0], fixed(c)[-1]
    if not REVERSE[direction]:
        return slice(0, last + 1), c
    return slice(first, None), 0 if isinstance(c, int) else tuple(p - first for p in c)


class Block(nn.Module):
    """`residual += hidden; hidden = mixer(RMSNorm(residual))`, the residual in float32.

    The addition is left to the next block, because one kernel then adds and normalises. Between blocks the stream is
    therefore x + h, of which h is still pending (`State`).
    """

    def __init__(self, model: ModelConfig, backend: Backend, mixer: "type[Mixer] | None" = None) -> None:
        super().__init__()
        self.backend = backend
        self.norm = nn.RMSNorm(model.d_model, eps=model.norm_eps)
        self.mixer = (mixer or Mixer)(model, backend)

    def forward(self, state: State, wants: tuple[str, ...] = ()) -> tuple[State, Taps]:
        """Return the state that leaves the block, and the taps named in `wants`."""
        x, u = self.add_norm(state)  # (B, L, D), both
        h, taps = self.mixer(u, state, wants)
        return state._replace(x=x, h=h), taps

    def forward_cls(self, state: State) -> State:
        """Return the n class tokens (B, n, D) that leave the last block, computing only what reaches them."""
        x, u = self.add_norm(state)  # (B, L, D), both
        return State(at(x, state.cls), self.mixer.forward_cls(u, state), cls=first_places(state.cls))

    def add_norm(self, state: State) -> tuple[Tensor, Tensor]:
        """Return the residual stream with the pending output added, and the input of the mixer; (B, L, D), both."""
        assert self.norm.eps is not None  # only the type of nn.RMSNorm allows None
        # The norm's output takes the GEMMs' dtype at once, since in_proj is its only reader.
        return self.backend.add_norm(state.x, state.h, self.norm.weight, self.norm.eps, self.mixer.input_dtype)


class Mixer(nn.Module):
    """The bidirectional selective state-space mixer.

    The directions share `in_proj`, the gate z and `out_proj`. Everything else exists once per direction; the
    parameters are stacked along a leading axis K, forward first, so that a backend computes both in one call.
    """

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
        share = 1 / K if model.divide_out else 1.0
        self.scan_norm = ScanNorm(E, share) if model.scan_norm else None
        # A norm of the directions' average leaves nothing to fold into `out_proj`.
        self.share = 1.0 if model.scan_norm else share
        self.out_proj = OutProjection(E, D, share=self.share)

    @property
    def input_dtype(self) -> torch.dtype:
        """The dtype that in_proj reads."""
        return self.in_proj.weight.dtype

    def forward(self, u: Tensor, state: State, wants: tuple[str, ...] = ()) -> tuple[Tensor, Taps]:
        """Mix the tokens in both directions.

        Args:
            u: (B, L, D), normalised.
            state: gives what a plan changed for the blocks after it: token sizes, scale and gap.
            wants: the names of the taps to return.

        Returns:
            The output (B, L, D), and the taps.
        """
        x, z = self.in_proj(u).chunk(2, -1)  # (B, L, E), both
        # (K, B, L, E)
        x = self.backend.conv_silu(x, self.conv1d_weight, self.conv1d_bias, REVERSE, sizes=state.token_sizes)
        dt, B, C = self._select(x, slice(None))  # (K, B, L, R), (K, B, L, N), (K, B, L, N)
        # A tap, and a norm, need each direction before the gate and the sum, so the scan then leaves both to `gate`.
        A, dt_weight = self.decay_rates(), cast("Tensor | None", self.dt_proj_weight)
        split = "y" in wants or self.scan_norm is not None
        if "delta" in wants:  # a tap needs Delta in memory, so the scan takes the product instead of its factors
            dt, dt_weight = projected(dt, dt_weight), None  # (K, B, L, E)
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
            split=split,
        )
        taps = Taps(
            delta=step_sizes(dt, state.scale, self.dt_proj_bias) if "delta" in wants else None,
            B=B if "B" in wants else None,
            C=C if "C" in wants else None,
            A=A if "A" in wants else None,
            y=y if "y" in wants else None,
            z=z if "z" in wants else None,
            u=x if "u" in wants else None,
        )
        return self.out_proj(self.gate(y, z) if split else y), taps

    def forward_cls(self, u: Tensor, state: State) -> Tensor:
        """Return the output of `forward` at the n class tokens, (B, n, D), exactly.

        The classifier reads nothing else of the last block, so each direction stops at its last class token. If the
        token's position differs per image, both directions pass all tokens (`seen_by`). The gate and `out_proj` act on
        single tokens, so the class tokens' are enough.
        """
        c = state.cls
        inputs, z = self.in_half(u, 0), self.in_half(at(u, c), 1)  # (B, L, E), (B, n, E)
        A, at_c = self.decay_rates(), []
        # The directions pass different numbers of tokens, so they cannot share a call.
        for k in range(len(REVERSE)):
            one = slice(k, k + 1)  # keeps the axis K
            tokens, position = seen_by(k, c)
            sizes = None if state.token_sizes is None else state.token_sizes[tokens]
            # (1, B, l, E), l the tokens passed
            x = self.backend.conv_silu(
                inputs[:, tokens], self.conv1d_weight[one], self.conv1d_bias[one], REVERSE[one], sizes=sizes
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
                scale=None if state.scale is None else state.scale[..., tokens],
                gap=None if state.gap is None else state.gap[one, :, tokens],
                split=True,
            )
            at_c.append(at(y[0], position))  # (B, n, E)
        return self.out_proj(self.gate(torch.stack(at_c), z))  # (K, B, n, E) and (B, n, E) to (B, n, D)

    def cast(self, dtype: torch.dtype) -> None:
        """Give the weights of the matrix products a dtype, in place.

        A, D, Delta's bias and the convolution stay float32: they are small, and an error in A acts again at every
        step of a walk.
        """
        self.in_proj.to(dtype)
        self.out_proj.to(dtype)
        for name in ("x_proj_weight", "dt_proj_weight"):
            weight = getattr(self, name)
            setattr(self, name, nn.Parameter(weight.detach().to(dtype), requires_grad=weight.requires_grad))

    def decay_rates(self) -> Tensor:
        """Return A (K, E, N). The parameter is log(-A), so A stays negative and states decay, whatever is trained."""
        return -self.A_log.exp()

    def gate(self, y: Tensor, z: Tensor) -> Tensor:
        """Return the input of `out_proj` (B, L, E) from the directions y (K, B, L, E) and the gate z (B, L, E)."""
        return gated(y, z) if self.scan_norm is None else self.scan_norm(y) * F.silu(z)

    def _select(self, x: Tensor, k: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the scan takes from each token, the "selection" of a selective scan.

        Args:
            x: (K, B, L, E), the convolved inputs of the directions `k`.

        Returns:
            dt (K, B, L, R), from which `dt_proj_weight` makes Delta, and B and C, (K, B, L, N) both.
        """
        selected = self.selected(x.flatten(1, 2), k)  # (K, B L, R + N + N)
        dt, B, C = selected.unflatten(1, x.shape[1:3]).split(self.splits, -1)
        return dt, B, C

    # The two products that int8 has in another form (stm/model/quantized.py), besides in_proj and out_proj as a whole.

    def in_half(self, u: Tensor, half: int) -> Tensor:
        """Return one half of in_proj's output, (B, L, E): x or z."""
        return products.linear(u, self.in_proj.weight.chunk(2)[half])

    def selected(self, x: Tensor, k: slice) -> Tensor:
        """Return x_proj of the directions `k`, (K, B L, R + N + N)."""
        return products.linears(x, self.x_proj_weight[k])
