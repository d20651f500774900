"""Our three operations in ONNX's standard operators.

While a model is traced, each operation is one node of the domain `stm`. `lower` then writes it in operators of ai.onnx:
whoever exports a scan in torch's operators gets thousands of nodes, and no choice of how a runtime walks.
"""

from collections.abc import Callable, Sequence
from typing import Any

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


class Builder(Tape):
    """Nodes that replace one node, written in order.

    Args:
        name: of the node; every value is named after it, because a runtime refuses a name that two graphs of a file
            share.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self._count = name, 0

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


def lower(model: ir.Model) -> None:
    """Replace every node of our domain in a model by standard ones."""
    ours = [node for node in model.graph if node.domain == DOMAIN]
    for number, node in enumerate(ours):
        t = Builder(f"{node.op_type}_{number}")
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
    length, width = inputs[0].shape[1], inputs[1].shape[-1]
    sizes = attributes.get("sizes")
    outs = []
    for k, back in enumerate(attributes["reverse"]):
        weight, total = t.at(w, k, 0), t.at(b, k, 0)  # (E, W), (E,)
        if sizes is None:
            padded = t("Pad", x, t.ints(*((0, 0, 0, 0, width - 1, 0) if back else (0, width - 1, 0, 0, 0, 0))))
            taps = [t.slice(padded, 1, i, i + length) for i in (range(width) if back else reversed(range(width)))]
        else:  # the tokens that each evaluation reads, a row of zeros among them
            padded = t("Pad", x, t.ints(0, 0, 0, 0, 1, 0))
            token, window, share = table(tuple(sizes), bool(back), width)
            taps = [t("Gather", padded, t.ints(*tokens.tolist()), axis=1) for tokens in window]
        for i, tap in enumerate(taps):  # the i-th is i places earlier in walking order
            total = t("Add", total, t("Mul", tap, t.at(weight, width - 1 - i, 1)))
        out = t("Mul", total, t("Sigmoid", total))
        if sizes is not None:
            means = torch.zeros(length, len(token), dtype=torch.float64)
            means[token, torch.arange(len(token))] = share
            out = t("MatMul", t.floats(means.float().numpy()), out)  # (L, evaluations) times (B, evaluations, E)
        outs.append(t("Unsqueeze", out, t.ints(0)))
    return t("Concat", *outs, axis=0)


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
    delta = t("Softplus", delta)  # (K, B, L, E)
    if scale is not None:
        delta = t("Mul", delta, t("Unsqueeze", scale, t.ints(-1)))
    elapsed = delta if gap is None else t("Add", delta, gap)
    y = _recurrence(t, elapsed, t("Mul", delta, u), A, B, C, reverse)
    y = t("Add", y, t("Mul", t("Unsqueeze", D, t.ints(1, 2)), u))
    if attributes["split"]:
        return y
    y = t("ReduceSum", y, t.ints(0), keepdims=0)
    if z is None:
        return y
    z = t.float32(z)
    return t("Mul", y, t("Mul", z, t("Sigmoid", z)))


def _recurrence(
    t: Builder, elapsed: ir.Value, x: ir.Value, A: ir.Value, B: ir.Value, C: ir.Value, reverse: Sequence[int]
) -> ir.Value:
    """Write y_t = C_t h_t of h_t = exp(elapsed_t A) h_{t-1} + x_t B_t: one step of a Scan per token."""
    A = t("Unsqueeze", t("Transpose", A, perm=[0, 2, 1]), t.ints(1))  # (K, 1, N, E)

    def steps(v: ir.Value, axis: int) -> ir.Value:
        v = t("Transpose", v, perm=[2, 0, 1, 3])  # (L, K, B, X)
        return t("Unsqueeze", t.walked(v, reverse, 1, 0), t.ints(axis))

    inputs = [steps(elapsed, 3), steps(x, 3), steps(B, 4), steps(C, 3)]
    batch = t.slice(t("Shape", x), 0, 1, 2)
    shape = t("Concat", t.ints(1), batch, t.ints(1, 1), axis=0)
    h0 = t("Expand", t("Mul", A, t.floats(0.0)), shape)  # (K, B, N, E)
    body = Builder(f"{t.name}_token")
    h, d, xs, b, c = (body.value(ir.DataType.FLOAT) for _ in range(5))
    new = body("Add", body("Mul", body("Exp", body("Mul", d, A)), h), body("Mul", b, xs))
    y = body("MatMul", c, new)
    new.type = y.type = h.type
    graph = ir.Graph([h, d, xs, b, c], [new, y], nodes=body.nodes, name=body.name)
    outputs = [t.value(), t.value()]
    t.op_multi_out("Scan", [h0, *inputs], {"body": graph, "num_scan_inputs": 4}, outputs=outputs)
    ys = outputs[1]
    ys = t("Transpose", t("Squeeze", ys, t.ints(3)), perm=[1, 2, 0, 3])  # (K, B, L, E)
    return t.walked(ys, reverse, 0, 2)


_LOWERED: dict[str, Callable[[Builder, Sequence[Any], dict[str, Any]], ir.Value]] = {
    "ConvSilu": _conv_silu,
    "SelectiveScan": _scan,
}
