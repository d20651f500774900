"""Our three operations in ONNX's standard operators.

While a model is traced, each operation is one node of the domain `stm`. `lower` then writes it in operators of ai.onnx:
whoever exports a scan in torch's operators has no choice of how a runtime walks.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import onnx_ir as ir
import torch
from onnx_ir.tape import Tape
from torch import Tensor

from stm.backends import Backend
from stm.backends.conv import table
from stm.backends.reference import add_norm

DOMAIN = "stm"
_FIRST = -(2**31)  # before the first token, for slices that walk backwards


def conv_silu(
    x: Tensor, w: Tensor, b: Tensor, reverse: tuple[bool, ...], *, sizes: tuple[int, ...] | None = None
) -> Tensor:
    """Trace `stm.backends.reference.conv_silu` as one node."""
    attributes: dict[str, Any] = {"reverse": [int(back) for back in reverse]}
    if sizes is not None:
        attributes["sizes"] = list(sizes)
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::ConvSilu", [x, w, b], attributes, dtype=x.dtype, shape=(len(reverse), *x.shape), version=1
    )


def scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    reverse: tuple[bool, ...],
    *,
    dt_weight: Tensor | None = None,
    dt_bias: Tensor | None = None,
    scale: Tensor | None = None,
    gap: Tensor | None = None,
    split: bool = False,
) -> Tensor:
    """Trace `stm.backends.reference.scan` as one node."""
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::SelectiveScan",
        [u, dt, A, B, C, D, z, dt_weight, dt_bias, scale, gap],
        {"reverse": [int(back) for back in reverse], "split": int(split)},
        dtype=u.dtype,
        shape=u.shape if split else u.shape[1:],
        version=1,
    )


BACKEND = Backend("onnx", conv_silu, scan, add_norm)


class Form(NamedTuple):
    """Which of two equal forms a runtime computes faster; `benchmarks/export.py` measures them.

    Args:
        block: tokens per step of a `Scan`. A longer step has larger operators, and copies more.
        softplus: use the operator of this name.
    """

    block: int
    softplus: bool


ONNX_RUNTIME = Form(block=1, softplus=False)
OPENVINO = Form(block=8, softplus=True)


class Builder(Tape):
    """Nodes that replace one node, written in order.

    Args:
        name: of the node; every value is named after it, because a runtime refuses a name that two graphs of a file
            share.
        form: what they take if there are two ways.
    """

    def __init__(self, name: str, form: Form) -> None:
        super().__init__()
        self.name, self.form, self._count = name, form, 0

    def fresh(self) -> str:
        """Return a name that no other value has."""
        self._count += 1
        return f"{self.name}_{self._count}"

    def __call__(self, op: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Add a node with one output, and return it."""
        return self.op(op, list(inputs), attributes, output=self.value())

    def value(self, dtype: ir.DataType | None = None) -> ir.Value:
        """Return a new value."""
        return ir.Value(name=self.fresh(), type=None if dtype is None else ir.TensorType(dtype))

    def ints(self, *values: int) -> ir.Value:
        """Return a constant (n,) of int64."""
        return self("Constant", value=ir.tensor(list(values), dtype=ir.DataType.INT64))

    def floats(self, value: Any) -> ir.Value:
        """Return a constant of float32."""
        return self("Constant", value=ir.tensor(value, dtype=ir.DataType.FLOAT))

    def at(self, x: ir.Value, index: int, axis: int) -> ir.Value:
        """Return x[index] along an axis, without the axis."""
        return self("Gather", x, self("Constant", value=ir.tensor(index, dtype=ir.DataType.INT64)), axis=axis)

    def slice(self, x: ir.Value, axis: int, first: int, end: int, step: int = 1) -> ir.Value:
        """Return x[first:end:step] along an axis."""
        return self("Slice", x, self.ints(first), self.ints(end), self.ints(axis), self.ints(step))

    def split(self, x: ir.Value, count: int) -> list[ir.Value]:
        """Return x in `count` equal parts along the first axis."""
        if count == 1:
            return [x]
        parts = [self.value() for _ in range(count)]
        self.op_multi_out("Split", [x], {"axis": 0, "num_outputs": count}, outputs=parts)
        return parts

    def joined(self, parts: list[ir.Value]) -> ir.Value:
        """Return values behind each other along the first axis."""
        return parts[0] if len(parts) == 1 else self("Concat", *parts, axis=0)

    def float32(self, x: ir.Value) -> ir.Value:
        """Return x in float32."""
        return x if x.dtype == ir.DataType.FLOAT else self("Cast", x, to=ir.DataType.FLOAT)

    def walked(self, x: ir.Value, reverse: Sequence[int], directions: int, tokens: int) -> ir.Value:
        """Return x with the tokens of each backward direction in walking order, or back in their own.

        Args:
            directions, tokens: the two axes.
        """
        if not any(reverse):
            return x
        if all(reverse):
            return self.slice(x, tokens, -1, _FIRST, -1)
        parts = [
            self(
                "Slice", x, self.ints(k, -1), self.ints(k + 1, _FIRST), self.ints(directions, tokens), self.ints(1, -1)
            )
            if back
            else self.slice(x, directions, k, k + 1)
            for k, back in enumerate(reverse)
        ]
        return self("Concat", *parts, axis=directions)


def lower(model: ir.Model, form: Form) -> None:
    """Replace every node of our domain in a model by standard ones, in the form that suits a runtime."""
    ours = [node for node in model.graph if node.domain == DOMAIN]
    for number, node in enumerate(ours):
        t = Builder(f"{node.op_type}_{number}", form)
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        out = _LOWERED[node.op_type](t, list(node.inputs), attributes)
        if node.outputs[0].dtype not in (None, ir.DataType.FLOAT):
            out = t("Cast", out, to=node.outputs[0].dtype)
        out.shape, out.type = node.outputs[0].shape, node.outputs[0].type
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], t.nodes, [node.outputs[0]], [out])
    model.graph.opset_imports.pop(DOMAIN, None)
    model.opset_imports.pop(DOMAIN, None)


def _conv_silu(t: Builder, inputs: Sequence[Any], attributes: dict[str, Any]) -> ir.Value:
    """Write SiLU of the causal convolution of each direction, float32."""
    x, w, b = map(t.float32, inputs)  # (B, L, E), (K, E, W), (K, E)
    tokens, (_, channels, width) = inputs[0].shape[1], inputs[1].shape
    sizes = attributes.get("sizes")
    x = t("Transpose", x, perm=[0, 2, 1]) if sizes is None else t("Pad", x, t.ints(0, 0, 0, 0, 1, 0))
    outs = []
    for k, back in enumerate(attributes["reverse"]):
        weight, bias = t.at(w, k, 0), t.at(b, k, 0)  # (E, W), (E,)
        if sizes is None:
            if back:  # the last tap is the token itself; those that came before it stand behind it
                weight = t.slice(weight, 1, -1, _FIRST, -1)
            pads = [0, width - 1] if back else [width - 1, 0]
            out = t("Conv", x, t("Unsqueeze", weight, t.ints(1)), bias, group=channels, pads=pads)  # (B, E, L)
            out = t("Transpose", _silu(t, out), perm=[0, 2, 1])
        else:
            out = _span_conv(t, x, weight, bias, table(tuple(sizes), bool(back), width), tokens)
        outs.append(t("Unsqueeze", out, t.ints(0)))
    return t("Concat", *outs, axis=0)


def _span_conv(
    t: Builder,
    padded: ir.Value,
    weight: ir.Value,
    bias: ir.Value,
    evaluations: tuple[Tensor, Tensor, Tensor],
    tokens: int,
) -> ir.Value:
    """Write one direction of the convolution over positions; see `stm.backends.conv.span`.

    Args:
        padded: (B, L + 1, E), a row of zeros behind the tokens.
        weight, bias: (E, W), (E,).
        evaluations: of `stm.backends.conv.table`.
        tokens: L.
    """
    token, window, share = evaluations
    total, last = bias, len(window) - 1
    for i, read in enumerate(window):  # the i-th is i places earlier in walking order
        tap = t("Gather", padded, t.ints(*read.tolist()), axis=1)
        total = t("Add", total, t("Mul", tap, t.at(weight, last - i, 1)))
    means = torch.zeros(tokens, len(token), dtype=torch.float64)
    means[token, torch.arange(len(token))] = share
    # (L, evaluations) times (B, evaluations, E)
    return t("MatMul", t.floats(means.float().numpy()), _silu(t, total))


def _silu(t: Builder, x: ir.Value) -> ir.Value:
    return t("Mul", x, t("Sigmoid", x))


def _scan(t: Builder, inputs: Sequence[Any], attributes: dict[str, Any]) -> ir.Value:
    """Write the selective scan, float32."""
    # ONNX drops absent inputs at the end.
    every: list[Any] = [*inputs, *[None] * (11 - len(inputs))]
    u, dt, A, B, C, D, z, dt_weight, dt_bias, scale, gap = every
    reverse = attributes["reverse"]
    if dt_weight is not None:  # (K, B, L, R) times (K, E, R)
        dt = t("MatMul", dt, t("Unsqueeze", t("Transpose", dt_weight, perm=[0, 2, 1]), t.ints(1)))
    u, delta, B, C = map(t.float32, (u, dt, B, C))
    if dt_bias is not None:
        delta = t("Add", delta, t("Unsqueeze", dt_bias, t.ints(1, 2)))
    delta = t("Softplus", delta) if t.form.softplus else softplus(t, delta)  # (K, B, L, E)
    if scale is not None:
        delta = t("Mul", delta, t("Unsqueeze", scale, t.ints(-1)))
    elapsed = delta if gap is None else t("Add", delta, gap)
    length = inputs[0].shape[2]
    y = _recurrence(t, elapsed, t("Mul", delta, u), A, B, C, reverse, length)
    y = t("Add", y, t("Mul", t("Unsqueeze", D, t.ints(1, 2)), u))
    if attributes["split"]:
        return y
    y = t("Sum", *(t.at(y, k, 0) for k in range(len(reverse))))  # ONNX Runtime's ReduceSum takes five times as long
    return y if z is None else t("Mul", y, _silu(t, t.float32(z)))


def softplus(t: Builder, x: ir.Value) -> ir.Value:
    """Write log(1 + exp(x)) in ten operators: the one of ONNX Runtime's takes three times their time (1.32).

    It is max(x, 0) + log(1 + e) of e = exp(-|x|). What the sum 1 + e rounds away comes back behind the logarithm, so
    that steps close to zero keep their digits.
    """
    one = t.floats(1.0)
    e = t("Exp", t("Neg", t("Abs", x)))
    total = t("Add", e, one)
    rounded = t("Sub", e, t("Sub", total, one))
    return t("Add", t("Relu", x), t("Add", t("Log", total), rounded))


def _recurrence(
    t: Builder,
    elapsed: ir.Value,
    x: ir.Value,
    A: ir.Value,
    B: ir.Value,
    C: ir.Value,
    reverse: Sequence[int],
    length: int,
) -> ir.Value:
    """Write y_t = C_t h_t of h_t = exp(elapsed_t A) h_{t-1} + x_t B_t, from zero: a Scan, one step per T tokens."""
    size = min(t.form.block, length)
    steps = -(-length // size)
    padding = steps * size - length
    A = t("Unsqueeze", t("Transpose", A, perm=[0, 2, 1]), t.ints(1))  # (K, 1, N, E)

    def blocks(v: ir.Value, axis: int) -> ir.Value:
        """Return v (K, B, L, X) in walking order as (steps, T, K, B, 1, X), or (.., X, 1), with zeros behind it."""
        v = t.walked(t("Transpose", v, perm=[2, 0, 1, 3]), reverse, 1, 0)
        if padding:
            v = t("Pad", v, t.ints(0, 0, 0, 0, padding, 0, 0, 0))
        shape = t("Concat", t.ints(steps, size), t("Shape", v, start=1), axis=0)
        return t("Unsqueeze", t("Reshape", v, shape), t.ints(axis))

    inputs = [blocks(elapsed, 4), blocks(x, 4), blocks(B, 5), blocks(C, 4)]
    batch = t("Shape", x, start=1, end=2)
    h0 = t("Expand", t("Mul", A, t.floats(0.0)), t("Concat", t.ints(1, 1), batch, t.ints(1, 1), axis=0))

    body = Builder(f"{t.name}_block", t.form)
    # (1, K, B, N, E), (T, K, B, 1, E) twice, (T, K, B, N, 1), (T, K, B, 1, N)
    h, d, xs, b, c = (body.value(ir.DataType.FLOAT) for _ in range(5))
    decays = body.split(body("Exp", body("Mul", d, A)), size)  # T of (1, K, B, N, E)
    states = [h]
    for decay, new in zip(decays, body.split(body("Mul", b, xs), size), strict=True):
        states.append(body("Add", body("Mul", decay, states[-1]), new))
    after = states[-1]
    y = body("MatMul", c, body.joined(states[1:]))  # (T, K, B, 1, E)
    after.type = y.type = h.type
    graph = ir.Graph([h, d, xs, b, c], [after, y], nodes=body.nodes, name=body.name)
    outputs = [t.value(), t.value()]
    t.op_multi_out("Scan", [h0, *inputs], {"body": graph, "num_scan_inputs": 4}, outputs=outputs)
    ys = t("Squeeze", outputs[1], t.ints(4))
    ys = t("Reshape", ys, t("Concat", t.ints(steps * size), t("Shape", ys, start=2), axis=0))
    if padding:
        ys = t.slice(ys, 0, 0, length)
    return t.walked(t("Transpose", ys, perm=[1, 2, 0, 3]), reverse, 0, 2)  # (K, B, L, E)


_LOWERED: dict[str, Callable[[Builder, Sequence[Any], dict[str, Any]], ir.Value]] = {
    "ConvSilu": _conv_silu,
    "SelectiveScan": _scan,
}
