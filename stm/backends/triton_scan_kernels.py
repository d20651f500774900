"""The kernels of triton_scan.py, in Triton's language.

A program walks one direction of one image for a few channels, with all N states in registers, in float32.

- Layout. States are (N, channels), channels innermost. A thread then owns whole columns, and C_t h_t is a sum over its
  registers. If a program has few channels, the threads of a warp share the states, which trades work for more programs.
- The factor `one`. Triton chooses a layout by what it finds contiguous in memory, and would split the columns. The
  addresses of states contain a factor `one`, always 1, of which the compiler knows nothing. A test compiles the kernels
  and fails if threads exchange states.
- No specialisation. A kernel serves any number of images and tokens. Triton would otherwise compile a kernel anew for
  the last batch of a set and for each merge step.
"""

import triton
import triton.language as tl

from stm.backends.triton_common import sigmoid, softplus

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _channels(u, dt, gap, scale, row, at_scale, e, in_e, E):
    """Return a token's channels as they are stored: its input, Delta before bias and softplus, its factor, and gap."""
    u_t = tl.load(u + row * E + e, mask=in_e, other=0.0)
    dt_t = tl.load(dt + row * E + e, mask=in_e, other=0.0)
    factor, gap_t = 1.0, 0.0
    if scale is not None:
        factor = tl.load(scale + at_scale)
    if gap is not None:
        gap_t = tl.load(gap + row * E + e, mask=in_e, other=0.0)
    return u_t, dt_t, factor, gap_t


@triton.jit
def _states(B, C, row, n, in_n, row_B, row_C):
    """Return a token's B and C as they are stored."""
    return tl.load(B + row * row_B + n, mask=in_n, other=0.0), tl.load(C + row * row_C + n, mask=in_n, other=0.0)


@triton.jit
def _bias(dt_bias, k, e, in_e, E):
    """Return Delta's bias of these channels, 0 without one."""
    if dt_bias is None:
        return 0.0
    else:
        return tl.load(dt_bias + k * E + e, mask=in_e, other=0.0)


@triton.jit
def _steps(u_t, dt_t, factor, gap_t, bias_e):
    """Return the input, the softplus and the elapsed time of a token, in float32."""
    soft = softplus(dt_t.to(tl.float32) + bias_e)
    elapsed = soft * factor
    return u_t.to(tl.float32), soft, elapsed + gap_t


@triton.jit(do_not_specialize=["one", "row_scale", "batch", "L", "reverse"])
def scan_forward(
    u, dt, A, B, C, D, dt_bias, scale, gap, y, between, row_B, row_C, row_scale, batch, L, E, reverse, one,
    N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Write y (K, B, L, E), and the state before each chunk of tokens to `between` (K, B, chunks, N, E), if given."""
    b, k = tl.program_id(1), tl.program_id(2)
    e, n = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_N)
    in_e, in_n = e < E, n < N
    inside = in_n[:, None] & in_e[None, :]
    parameter = (k * E + e[None, :]) * N + n[:, None] * one
    A_2 = tl.load(A + parameter, mask=inside, other=0.0) * LOG2E  # (N, E), since the hardware has exp2, not exp
    D_e, bias_e = tl.load(D + k * E + e, mask=in_e, other=0.0), _bias(dt_bias, k, e, in_e, E)
    h = tl.zeros((BLOCK_N, BLOCK_E), tl.float32)
    back = (reverse >> k) & 1
    step = 1 - 2 * back
    walk = k * batch + b  # the number of this program's walk
    first = walk.to(tl.int64) * L  # 64 bits, as rows times E exceed 32 for large batches
    t = back * (L - 1)
    # A software pipeline of three tokens. A turn of the loop loads the channels of the token after the next one; loads
    # B and C of the next one and computes its step sizes; and advances the states of the current one. The three do not
    # wait for each other. Beyond the last token, the last one is loaded again and not used.
    ahead = t + tl.where(L > 1, step, 0)
    u_t, dt_t, factor, gap_t = _channels(u, dt, gap, scale, first + t, b * row_scale + t, e, in_e, E)
    x, soft, elapsed = _steps(u_t, dt_t, factor, gap_t, bias_e)
    x_in = soft * factor * x
    u_t, dt_t, factor, gap_t = _channels(u, dt, gap, scale, first + ahead, b * row_scale + ahead, e, in_e, E)
    B_t, C_t = _states(B, C, first + t, n, in_n, row_B, row_C)
    for i in range(L):
        further = ahead + tl.where(i + 2 < L, step, 0)
        u_f, dt_f, factor_f, gap_f = _channels(u, dt, gap, scale, first + further, b * row_scale + further, e, in_e, E)
        B_a, C_a = _states(B, C, first + ahead, n, in_n, row_B, row_C)
        x_a, soft_a, elapsed_a = _steps(u_t, dt_t, factor, gap_t, bias_e)
        if between is not None:  # noqa: SIM102 - this condition is known at compile time, the next one is not
            if i % CHUNK == 0:
                chunk = walk.to(tl.int64) * ((L + CHUNK - 1) // CHUNK) + i // CHUNK
                tl.store(between + (chunk * N + n[:, None]) * E + e[None, :] * one, h, mask=inside)
        h = tl.exp2(elapsed[None, :] * A_2) * h + x_in[None, :] * B_t.to(tl.float32)[:, None]
        y_t = tl.sum(h * C_t.to(tl.float32)[:, None], 0) + D_e * x
        tl.store(y + (first + t) * E + e, y_t.to(y.dtype.element_ty), mask=in_e)
        x, x_in, elapsed, B_t, C_t = x_a, soft_a * factor * x_a, elapsed_a, B_a, C_a
        u_t, dt_t, factor, gap_t = u_f, dt_f, factor_f, gap_f
        t, ahead = ahead, further


@triton.jit(do_not_specialize=["total"])
def gate_forward(y, z, out, row_z, total, E, K: tl.constexpr, BLOCK: tl.constexpr):
    """Write out (B, L, E), the sum of y (K, B, L, E) over the directions, times SiLU(z) if there is a gate.

    `total` is the number of elements, B L E.
    """
    row, e = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    in_e = e < E
    at = row * E + e
    both = tl.load(y + at, mask=in_e, other=0.0).to(tl.float32)
    for k in tl.static_range(1, K):
        both += tl.load(y + at + k * total.to(tl.int64), mask=in_e, other=0.0).to(tl.float32)
    if z is not None:
        gate = tl.load(z + row * row_z + e, mask=in_e, other=0.0).to(tl.float32)
        both *= gate * sigmoid(gate)
    tl.store(out + at, both.to(out.dtype.element_ty), mask=in_e)


@triton.jit(do_not_specialize=["one", "row_scale", "walk_grad", "batch", "L", "reverse"])
def scan_backward(
    grad, u, dt, A, B, C, D, dt_bias, scale, gap, between, scratch,
    g_u, g_dt, g_A, g_B, g_C, g_D, g_bias, g_scale, g_gap,
    row_B, row_C, row_scale, walk_grad, batch, L, E, reverse, one,
    N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Write the gradients of all inputs from the gradient of y: `grad` (K, B, L, E), or (B, L, E) for all directions.

    Chunks of tokens are taken from the last to the first. A chunk's states are computed again into `scratch` (programs,
    CHUNK, N, channels), then its tokens are walked backwards. The caller sums over the images (A, D, dt_bias: a
    leading B) and over channels (B, C, scale: a leading axis of channel blocks).

    With g_t the gradient of h_t: g_t = C_t g_y + decay_{t+1} g_{t+1}, and every other gradient follows from g_t, from
    h_{t-1} and from the inputs of token t.
    """
    block, b, k = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    e_local, n = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_N)
    e = block * BLOCK_E + e_local
    in_e, in_n = e < E, n < N
    inside = in_n[:, None] & in_e[None, :]
    parameter = (k * E + e[None, :]) * N + n[:, None] * one
    A_n = tl.load(A + parameter, mask=inside, other=0.0)  # (N, E)
    D_e, bias_e = tl.load(D + k * E + e, mask=in_e, other=0.0), _bias(dt_bias, k, e, in_e, E)
    back = (reverse >> k) & 1
    step = 1 - 2 * back
    walk = (k * batch + b).to(tl.int64)
    walks = tl.num_programs(2) * batch
    first, start = walk * L, back * (L - 1)
    chunks = (L + CHUNK - 1) // CHUNK
    program = walk * tl.num_programs(0) + block
    mine = (program * CHUNK * BLOCK_N + n[:, None]) * BLOCK_E + e_local[None, :] * one  # this program's part of scratch
    g_h = tl.zeros((BLOCK_N, BLOCK_E), tl.float32)  # the gradient of the current token's state, from later tokens
    sum_A = tl.zeros((BLOCK_N, BLOCK_E), tl.float32)
    sum_D = tl.zeros((BLOCK_E,), tl.float32)
    sum_bias = tl.zeros((BLOCK_E,), tl.float32)
    for c in range(chunks):
        chunk = chunks - 1 - c
        tokens = tl.minimum(CHUNK, L - chunk * CHUNK)
        h = tl.load(between + ((walk * chunks + chunk) * N + n[:, None]) * E + e[None, :] * one, mask=inside, other=0.0)
        for j in range(tokens):
            tl.store(scratch + mine + j * BLOCK_N * BLOCK_E, h)
            t = start + step * (chunk * CHUNK + j)
            u_t, dt_t, factor, gap_t = _channels(u, dt, gap, scale, first + t, b * row_scale + t, e, in_e, E)
            B_t, _ = _states(B, C, first + t, n, in_n, row_B, row_C)
            x, soft, elapsed = _steps(u_t, dt_t, factor, gap_t, bias_e)
            h = tl.exp(elapsed[None, :] * A_n) * h + (soft * factor * x)[None, :] * B_t.to(tl.float32)[:, None]
        tl.debug_barrier()  # another thread of the program may have written the state that a thread reads below
        for j_from_end in range(tokens):
            j = tokens - 1 - j_from_end
            before = tl.load(scratch + mine + j * BLOCK_N * BLOCK_E)
            t = start + step * (chunk * CHUNK + j)
            u_t, dt_t, factor, gap_t = _channels(u, dt, gap, scale, first + t, b * row_scale + t, e, in_e, E)
            B_t, C_t = _states(B, C, first + t, n, in_n, row_B, row_C)
            g_y = tl.load(grad + (k * walk_grad + b).to(tl.int64) * L * E + t * E + e, mask=in_e, other=0.0).to(
                tl.float32
            )
            B_f, C_f = B_t.to(tl.float32)[:, None], C_t.to(tl.float32)[:, None]
            x, soft, elapsed = _steps(u_t, dt_t, factor, gap_t, bias_e)
            delta = soft * factor
            decay = tl.exp(elapsed[None, :] * A_n)
            h = decay * before + (delta * x)[None, :] * B_f
            row = first + t
            at = row * E + e
            partial = block * walks * L + row  # where this block's part of a sum over channels goes
            tl.store(g_C + partial * N + n, tl.sum(g_y[None, :] * h, 1), mask=in_n)
            g_state = g_h + C_f * g_y[None, :]
            tl.store(g_B + partial * N + n, tl.sum(g_state * (delta * x)[None, :], 1), mask=in_n)
            g_product = tl.sum(g_state * B_f, 0)  # the gradient of Delta u
            g_exponent = g_state * before * decay  # the gradient of elapsed A
            g_elapsed = tl.sum(g_exponent * A_n, 0)
            g_delta = g_product * x + g_elapsed
            sum_A += g_exponent * elapsed[None, :]
            sum_D += g_y * x
            tl.store(g_u + at, (g_product * delta + g_y * D_e).to(g_u.dtype.element_ty), mask=in_e)
            g_dt_t = g_delta * factor * sigmoid(dt_t.to(tl.float32) + bias_e)
            sum_bias += g_dt_t
            tl.store(g_dt + at, g_dt_t.to(g_dt.dtype.element_ty), mask=in_e)
            if gap is not None:
                tl.store(g_gap + at, g_elapsed.to(g_gap.dtype.element_ty), mask=in_e)
            if scale is not None:
                tl.store(g_scale + partial, tl.sum(g_delta * soft, 0))
            g_h = decay * g_state
        tl.debug_barrier()  # before the next chunk overwrites the states
    of_image = b * tl.num_programs(2) * E
    tl.store(g_A + of_image.to(tl.int64) * N + parameter, sum_A, mask=inside)
    tl.store(g_D + of_image + k * E + e, sum_D, mask=in_e)
    if g_bias is not None:
        tl.store(g_bias + of_image + k * E + e, sum_bias, mask=in_e)
