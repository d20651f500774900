"""The sections of `gpu.py`: whole models, kernels alone, a training step, a profile; and the clock that times them."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import stm
from stm import backends
from stm.config import Config, ModelConfig, dense_schedule
from stm.model.initialize import initialize
from stm.model.vim import ViM

DTYPES = ("float32", "bfloat16")
RATE = 0.4
ROUNDS = 15
RESERVED = 150  # seconds that the whole models leave to the other sections
BOTH = (False, True)
Run = Callable[[], Any]


class Clock:
    """A clock for a device; CUDA is timed by its own events, which no delay of the host can lengthen."""

    def __init__(self, device: torch.device, limit: float) -> None:
        self.device, self.end = device, time.monotonic() + limit

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def once(self, run: Run, times: int) -> float:
        """Return the milliseconds of one run, measured over so many in a row."""
        if self.device.type != "cuda":
            start = time.perf_counter()
            for _ in range(times):
                run()
            return (time.perf_counter() - start) * 1e3 / times
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(times):
            run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / times

    def compare(self, runs: dict[str, Run]) -> dict[str, dict[str, float]]:
        """Return the median and the quartiles of each run in milliseconds, taken in turns."""
        for run in runs.values():
            self.once(run, 2)  # compiles, tunes and allocates
        # About 5 ms per sample: shorter ones would measure the resolution of the events.
        times = {name: max(1, min(50, int(5 / self.once(run, 1)))) for name, run in runs.items()}
        samples: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(ROUNDS):
            for name, run in runs.items():
                samples[name].append(self.once(run, times[name]))
        rows = {}
        for name, values in samples.items():
            low, median, high = statistics.quantiles(values, n=4)
            rows[name] = {"ms": median, "ms_low": low, "ms_high": high}
        return rows


def vim(d_model: int, dtype: str, backend: str, device: torch.device) -> ViM:
    shape = ModelConfig(d_model=d_model, depth=24, dt_rank=-(-d_model // 16))
    config = Config(model=shape, num_classes=1000, schedule=dense_schedule(shape))
    model = initialize(ViM(config, backends.choose(backend, device.type)), seed=0)
    return model.cast(dtype).requires_grad_(False).to(device).eval()


def captured(run: Run) -> Run:
    """Return the same work as one CUDA graph."""
    # A capture must begin on a side stream after warm-up runs: allocations and compilation cannot be captured.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def activations(run: Run, device: torch.device) -> int | None:
    """Return the most memory that a run holds at once beyond the memory held before; None off CUDA."""
    if device.type != "cuda":
        return None
    run()  # the first run makes buffers that later runs share
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    return torch.cuda.max_memory_allocated(device) - before


def gemms(model: ViM, batch: int) -> Run:
    """Return a call of the blocks' matrix products alone, on every token."""
    shape, mixer = model.config.model, model.blocks[0].mixer
    weight = mixer.in_proj.weight
    tokens = torch.zeros(batch * shape.tokens, shape.d_model, dtype=weight.dtype, device=weight.device)
    inner = torch.zeros(2, batch * shape.tokens, shape.d_inner, dtype=weight.dtype, device=weight.device)

    def run() -> None:
        for _ in range(shape.depth):
            F.linear(tokens, mixer.in_proj.weight)
            selected = torch.bmm(inner, mixer.x_proj_weight.mT)
            torch.bmm(selected[..., : shape.dt_rank], mixer.dt_proj_weight.mT)
            F.linear(inner[0], mixer.out_proj.weight)

    return run


@torch.inference_mode()
def whole_models(
    clock: Clock, names: list[str], sizes: dict[str, int], batches: Sequence[int]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return a row per model, batch, dtype and variant, and what the time did not suffice for.

    The first backend runs dense and compressed; the others run dense.
    """
    rows, missing = [], []
    device = clock.device
    for dtype in DTYPES:
        for size, d_model in sizes.items():
            models = {f"dense, {name}": vim(d_model, dtype, name, device) for name in names}
            first = models[f"dense, {names[0]}"]
            models = {f"compressed, {names[0]}": stm.compress(first, rate=RATE, method="staged")} | models
            for batch in batches:
                if clock.left < RESERVED:
                    missing.append(f"{size}, batch {batch}, {dtype}: out of time")
                    continue
                images = torch.randn(batch, 3, 224, 224, device=device)
                runs: dict[str, Run] = {f"{name}, eager": lambda m=m, x=images: m(x) for name, m in models.items()}
                peaks = {name: activations(run, device) for name, run in runs.items()}
                if device.type == "cuda":
                    runs |= {f"{name}, graph": captured(lambda m=m, x=images: m(x)) for name, m in models.items()}
                runs["GEMMs alone"] = gemms(first, batch)
                for variant, row in clock.compare(runs).items():
                    peak = peaks.get(variant)
                    rows.append(
                        {
                            "model": size,
                            "batch": batch,
                            "dtype": dtype,
                            "variant": variant,
                            **row,
                            "activation_bytes": peak,
                        }
                    )
    return rows, missing


def scan_inputs(
    batch: int, length: int, E: int, N: int, R: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """Return the inputs that a block hands to the scan."""
    g = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device=device)

    # B, C and z are slices of larger tensors, as in a block: a kernel sees their real strides.
    _, B, C = normal(2, batch, length, R + 2 * N).to(dtype).split([R, N, N], -1)
    z = normal(batch, length, 2 * E).to(dtype)[..., E:]
    return {
        "u": normal(2, batch, length, E).to(dtype),
        "dt": normal(2, batch, length, E).to(dtype),
        "dt_bias": normal(2, E) - 4,
        "A": -torch.arange(1, N + 1, device=device).float().expand(2, E, N).contiguous(),
        "B": B,
        "C": C,
        "D": normal(2, E),
        "z": z,
        "reverse": BOTH,
    }


@torch.inference_mode()
def kernels_alone(
    clock: Clock, names: list[str], d_model: int, batches: Sequence[int], lengths: Sequence[int]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return rows for the scan, the convolution and the norm of ViM-S by number of tokens, and what there was no time
    for.

    Every backend runs, and mamba-ssm's own calls on their own layout.
    """
    rows, missing = [], []
    E, N, R = 2 * d_model, 16, -(-d_model // 16)
    for dtype in (torch.bfloat16, torch.float32):
        for batch in batches:
            for length in lengths:
                if clock.left < 45:
                    missing.append(f"kernels at batch {batch}, {length} tokens, {dtype}: out of time")
                    continue
                values = scan_inputs(batch, length, E, N, R, dtype, clock.device)
                x, w, b = values["z"], torch.randn(2, E, 4, device=clock.device), torch.zeros(2, E, device=clock.device)
                spans = (2,) * length
                stream, h = torch.randn(2, batch, length, d_model, device=clock.device)
                h = h.to(dtype)
                runs: dict[str, Run] = {}
                for name in names:
                    chosen = backends.choose(name, clock.device.type)
                    runs[f"scan, {name}"] = lambda c=chosen, v=values: c.scan(**v)
                    runs[f"convolution, {name}"] = lambda c=chosen, x=x, w=w, b=b: c.conv_silu(x, w, b, BOTH)
                    runs[f"span convolution, {name}"] = lambda c=chosen, x=x, w=w, b=b, s=spans: c.conv_silu(
                        x, w, b, BOTH, sizes=s
                    )
                    runs[f"add and norm, {name}"] = lambda c=chosen, s=stream, h=h, d=dtype: c.add_norm(
                        s, h, s[0, 0], 1e-5, d
                    )
                if "mamba_ssm" in names:
                    runs |= mamba_alone(values, x, w, b)
                if "triton" in names:
                    runs |= scan_blocks(values)
                for variant, row in clock.compare(runs).items():
                    rows.append(
                        {
                            "what": variant,
                            "batch": batch,
                            "tokens": length,
                            "dtype": str(dtype).removeprefix("torch."),
                            **row,
                        }
                    )
    return rows, missing


def mamba_alone(values: dict[str, Any], x: Tensor, w: Tensor, b: Tensor) -> dict[str, Run]:
    """Return calls of selective_scan_cuda and causal-conv1d: both directions in one call, without the gate.

    Their inputs are laid out beforehand, so that the comparison favours them.
    """
    from stm.backends import mamba_ssm as m

    kernels, dtype = m._kernels(""), values["u"].dtype
    u, dt = (m._side_by_side(values[name].to(dtype), BOTH) for name in ("u", "dt"))
    B, C = (m._side_by_side(values[name], BOTH).unflatten(1, (2, -1)) for name in ("B", "C"))
    A, D, bias = values["A"].flatten(0, 1), values["D"].flatten(), values["dt_bias"].flatten()
    both = m._side_by_side([x, x], BOTH)
    return {
        "scan, mamba-ssm's call alone": lambda: kernels.scan(u, dt, A, B, C, D, None, bias, True),
        "convolution, causal-conv1d's call alone": lambda: kernels.conv(
            both, w.flatten(0, 1), b.flatten(), None, None, None, True
        ),
    }


def scan_blocks(values: dict[str, Any]) -> dict[str, Run]:
    """Return calls of our scan's kernel alone, one for each number of channels per program.

    They show whether the backend's own choice is the best one.
    """
    from stm.backends.triton_scan import CHUNK, Walk

    walk = Walk.of(*(values[name] for name in ("u", "dt", "A", "B", "C", "D", "dt_bias")), None, None, BOTH)
    sizes = {"N": 16, "BLOCK_N": 16, "CHUNK": CHUNK, "num_warps": 1}
    return {
        f"scan's kernel, {channels} channels a program": lambda s=sizes | {"BLOCK_E": channels}: walk.forward(block=s)
        for channels in (4, 8, 16, 32, 64)
    }


def training(clock: Clock, names: list[str], d_model: int, batch: int) -> list[dict[str, Any]]:
    """Return rows for forward and backward of a model of four blocks: the cost of training."""
    rows = []
    for dtype in ("bfloat16", "float32"):
        runs: dict[str, Run] = {}
        for name in names:
            shape = ModelConfig(d_model=d_model, depth=4, dt_rank=-(-d_model // 16))
            config = Config(model=shape, num_classes=1000, schedule=dense_schedule(shape))
            model = initialize(ViM(config, backends.choose(name, clock.device.type))).cast(dtype).to(clock.device)
            images = torch.randn(batch, 3, 224, 224, device=clock.device)

            def step(model: ViM = model, images: Tensor = images) -> None:
                model(images).square().mean().backward()

            runs[f"forward and backward, {name}"] = step
        rows += [{"what": name, "batch": batch, "dtype": dtype, **row} for name, row in clock.compare(runs).items()]
    return rows


@torch.inference_mode()
def profile(clock: Clock, backend: str, d_model: int, batch: int) -> dict[str, dict[str, float]]:
    """Return the device's milliseconds per forward, by kernel, of the dense and the compressed model in bf16."""
    from torch.profiler import ProfilerActivity

    shares: dict[str, dict[str, float]] = {}
    dense = vim(d_model, "bfloat16", backend, clock.device)
    images = torch.randn(batch, 3, 224, 224, device=clock.device)
    for variant, model in (("dense", dense), ("compressed", stm.compress(dense, rate=RATE, method="staged"))):
        model(images)
        with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as recorded:
            for _ in range(3):
                model(images)
            torch.cuda.synchronize()
        total: dict[str, float] = defaultdict(float)
        for event in recorded.key_averages():
            total[event.key[:80]] += event.self_device_time_total / 3e3
        shares[variant] = {name: ms for name, ms in sorted(total.items(), key=lambda item: -item[1]) if ms > 0}
    return shares
