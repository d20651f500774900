"""Every speed figure that a processor can show, as ratios within one run.

    python benchmarks/cpu.py                            # one thread, all figures
    python benchmarks/cpu.py --threads 2 --only products,gain
    python benchmarks/cpu.py --cpu-time                 # processor time of one thread, for a busy machine

Weights are random and images are noise: neither changes the time. Calls take turns. Each figure is the median over the
rounds of a ratio within a round, with the quartiles beside it. The machine and the settings stand above the table.
"""

import argparse
import itertools
import os
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter, thread_time
from typing import Any, NamedTuple

import kernels
import torch

import stm
from stm.backends.native_calls import Prepared
from stm.backends.reference import step_sizes
from stm.bake import bake
from stm.bench import gemms, rivals, vit
from stm.bench.timing import interleave, threads
from stm.commands.draw_model import draw_model
from stm.commands.rounding import rounded
from stm.errors import UsageError
from stm.measure.environment import processor_name
from stm.merging.plan import Taps
from stm.model.layers import REVERSE
from stm.model.malloc import keep_freed
from stm.model.vim import ViM
from stm.options import MergeOptions, ModelOptions


class Figure(NamedTuple):
    """A ratio of two times.

    Args:
        what: names both times.
        goal: a bound, or empty.
        ratio, low, high: the median over the rounds, and the quartiles.
        base: the median of the denominator, in ms.
    """

    what: str
    goal: str
    ratio: float
    low: float
    high: float
    base: float

    @classmethod
    def of(cls, what: str, goal: str, these: list[float], those: list[float], scale: float = 1.0) -> "Figure":
        """Return the figure of `scale` times the first times over the second ones, paired by round."""
        ratios = [scale * a / b for a, b in zip(these, those, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else (ratios[0],) * 3
        return cls(what, goal, statistics.median(ratios), low, high, 1000 * statistics.median(those))


class Bench:
    """The models and the clock of a run."""

    def __init__(self, rounds: int, clock: Callable[[], float]) -> None:
        self.rounds, self.clock = rounds, clock
        self.models: dict[tuple[Any, ...], ViM] = {}

    def model(self, name: str, **options: Any) -> ViM:
        key = (name, *sorted(options.items()))
        if key not in self.models:
            self.models[key] = draw_model(name, ModelOptions(device="cpu", **options))
        return self.models[key]

    def small(self, name: str, **wish: Any) -> ViM:
        return bake(self.model(name), MergeOptions(**wish))

    def time(self, rounds: int | None = None, **calls: Callable[[], Any]) -> dict[str, list[float]]:
        with torch.inference_mode():
            return interleave(calls, rounds or self.rounds, clock=self.clock)


def images(batch: int, size: int = 224) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def fastest(times: dict[str, list[float]]) -> str:
    """Return the library whose products took the shortest time in this run."""
    return min((name for name in gemms.libraries()), key=lambda name: statistics.median(times[name]))


def forward_over_products(bench: Bench) -> Iterator[Figure]:
    for name in ("vim-s", "vim-ti"):
        for batch in (1, 8):
            dense, x = bench.model(name), images(batch)
            served = dense.optimize(batch_size=batch)
            products = {library: gemms.alone(dense, batch, library) for library in gemms.libraries()}
            times = bench.time(**products, dense=partial(dense, x), served=partial(served, x))
            yield Figure.of(f"{name} B={batch} as loaded / served", "<= 1.15", times["dense"], times["served"])
            library = fastest(times)
            what = f"{name} B={batch} served / its products alone by {library}, the fastest here"
            goal = "<= 1.25" if name == "vim-s" else ""
            yield Figure.of(what, goal, times["served"], times[library])


def reference_over_dense(bench: Bench) -> Iterator[Figure]:
    dense = bench.model("vim-s")
    for batch in (1, 8):
        x, served = images(batch), dense.optimize(batch_size=batch)
        for backend, goal in (("reference", ">= 12"), ("blocked", "")):
            slow = bench.model("vim-s", backend=backend)
            times = bench.time(3, slow=partial(slow, x), dense=partial(dense, x), served=partial(served, x))
            yield Figure.of(f"vim-s B={batch}, backend {backend} / native", goal, times["slow"], times["dense"])
            yield Figure.of(
                f"vim-s B={batch}, backend {backend} / native, optimize()", goal, times["slow"], times["served"]
            )


def gain(bench: Bench) -> Iterator[Figure]:
    for name in ("vim-ti", "vim-s"):
        for batch in (1, 8):
            dense, small, x = bench.model(name), bench.small(name, rate=0.4, method="staged"), images(batch)
            served, small_served = dense.optimize(batch_size=batch), small.optimize(batch_size=batch)
            calls = {"dense": dense, "small": small, "served": served, "small_served": small_served}
            times = bench.time(**{key: partial(model, x) for key, model in calls.items()})
            yield Figure.of(f"{name} B={batch} dense / compressed, rate 0.4", ">= 1.25", times["dense"], times["small"])
            yield Figure.of(
                f"{name} B={batch} the same, both optimize()", ">= 1.25", times["served"], times["small_served"]
            )


def gain_of_savings(bench: Bench) -> Iterator[Figure]:
    dense, x = bench.model("vim-s"), images(1)
    for saving in (0.29, 0.35, 0.4, 0.45, 0.5):
        small = bench.small("vim-s", saving=saving)
        times = bench.time(dense=partial(dense, x), small=partial(small, x))
        yield Figure.of(f"vim-s B=1 dense / compressed, saving {saving:g}", "", times["dense"], times["small"])


def half(bench: Bench) -> Iterator[Figure]:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        absent("bfloat16", "this processor has no instructions for it")
        return
    for name, goal in (("vim-s", "<= 0.65"), ("vim-ti", "<= 0.8")):
        for batch in (1, 8):
            x = images(batch)
            calls = {
                dtype: partial(bench.model(name, dtype=dtype).optimize(batch_size=batch), x)
                for dtype in ("bfloat16", "float32")
            }
            times = bench.time(**calls)
            yield Figure.of(f"{name} B={batch} bfloat16 / float32, served", goal, times["bfloat16"], times["float32"])


def int8(bench: Bench) -> Iterator[Figure]:
    for name in ("vim-s", "vim-ti"):
        dense, small = bench.model(name), bench.small(name, rate=0.4, method="staged")
        models = {"dense": dense, "small": small, "dense8": rounded(dense), "small8": rounded(small)}
        for batch in (1, 8):
            x, of_s = images(batch), name == "vim-s"
            times = bench.time(**{key: partial(model.optimize(batch_size=batch), x) for key, model in models.items()})
            what = f"{name} B={batch} int8 / float32, served"
            yield Figure.of(what, "<= 0.5" if of_s else "", times["dense8"], times["dense"])
            yield Figure.of(f"{what}, both at rate 0.4", "", times["small8"], times["small"])
            what = f"{name} B={batch} dense float32 / rate 0.4 int8, served"
            yield Figure.of(what, ">= 2.3" if of_s else "", times["dense"], times["small8"])


def scan_over_limit(bench: Bench) -> Iterator[Figure]:
    g = torch.Generator().manual_seed(0)
    K, L, E, N = 2, 197, 768, 16
    for batch in (1, 8):
        u, dt = (torch.randn(K, batch, L, E, generator=g) for _ in range(2))
        A, D = -torch.rand(K, E, N, generator=g) * N, torch.ones(K, E)
        B, C = (torch.randn(K, batch, L, N, generator=g) for _ in range(2))
        z = torch.randn(batch, L, E, generator=g)
        bias = torch.full((K, E), -2.0)
        delta = step_sizes(dt, None, bias)
        # A rival that computes something else would be timed for nothing: hold it to the reference first.
        laid_out = kernels.materialising(u, delta, A, B, C)
        expected = bench.model("vim-s", backend="reference").backend.scan(
            u, dt, A, B, C, D, None, REVERSE, dt_bias=bias, split=True
        )
        torch.testing.assert_close(laid_out() + D[:, None, None] * u, expected, rtol=1e-4, atol=1e-4)
        calls: dict[str, Callable[[], Any]] = {"limit": kernels.limit(K * batch * L * E * N), "materialising": laid_out}
        out = torch.empty_like(z)
        calls["coarse"] = Prepared.scan(u, dt, A, B, C, D, z, None, bias, None, None, REVERSE, out=out, coarse=True)
        for backend in ("native", "blocked", "reference"):
            scan = bench.model("vim-s", backend=backend).backend.scan
            calls[backend] = partial(scan, u, dt, A, B, C, D, z, REVERSE, dt_bias=bias)
        # Backends with very different memory use are timed apart: the large ones would push the others out of the
        # caches.
        groups = (("native", "coarse"), ("materialising", "blocked"), ("reference",))
        for names, rounds in zip(groups, (4 * bench.rounds, bench.rounds, 3), strict=True):
            with threads(1):
                times = bench.time(rounds, **{name: calls[name] for name in ("limit", *names)})
            for name in names:
                goal = "<= 1.5" if batch == 1 and name == "native" else ""
                what = "exp2 + FMA limit" if name in ("native", "coarse") else "limit"
                yield Figure.of(f"scan of vim-s B={batch}: {name} / {what}", goal, times[name], times["limit"])


def cost_of_a_token(bench: Bench) -> Iterator[Figure]:
    for short, long in (("vim-s", "vim-s-plus"), ("vim-ti", "vim-ti-plus")):
        few, many = bench.model(short), bench.model(long)
        times = bench.time(few=partial(few, images(1)), many=partial(many, images(1)))
        scale = few.config.model.tokens / many.config.model.tokens
        goal = "<= 1.1"
        yield Figure.of(
            f"{short} B=1 cost per token at {many.config.model.tokens} / at 197",
            goal,
            times["many"],
            times["few"],
            scale,
        )


def overhead_of_merging(bench: Bench) -> Iterator[Figure]:
    """Time the merge itself, and in every later block the extra work of the span convolution over the plain one."""
    for name in ("vim-ti", "vim-s"):
        for batch in (1, 8):
            small = bench.small(name, rate=0.4, method="staged")
            depth, step = small.config.model.depth, small.schedule.steps[0].after
            assert small.plan is not None
            with torch.inference_mode():
                state = small.embed(images(batch))
                state = state._replace(h=torch.zeros_like(state.x))
                merged = small.plan(step, state, Taps())
            mixer = small.blocks[step + 1].mixer
            inputs = torch.randn(batch, merged.x.shape[1], 2 * small.config.model.d_inner).chunk(2, -1)[0]
            conv = partial(small.backend.conv_silu, inputs, mixer.conv1d_weight, mixer.conv1d_bias, REVERSE)
            calls = {
                "span": partial(conv, sizes=merged.token_sizes),
                "plain": conv,
                "merge": partial(small.plan, step, state, Taps()),
            }
            times = bench.time(4 * bench.rounds, **calls)
            whole = bench.time(small=partial(small, images(batch)))["small"]
            extra = max(0.0, statistics.median(a - b for a, b in zip(times["span"], times["plain"], strict=True)))
            total = statistics.median(times["merge"]) + (depth - 1 - step) * extra
            yield Figure.of(
                f"{name} B={batch} merging and the span conv's extra work, share of the forward",
                "<= 0.015",
                [total],
                [statistics.median(whole)],
            )


def against_deit(bench: Bench) -> Iterator[Figure]:
    for name in ("vim-ti", "vim-s"):
        dense, small = bench.model(name), bench.small(name, rate=0.4, method="staged")
        models = {
            "dense, float32": dense,
            "rate 0.4, float32": small,
            "dense, int8": rounded(dense),
            "rate 0.4, int8": rounded(small),
            "saving 0.4, int8": rounded(bench.small(name, saving=0.4, method="staged")),
        }
        shape = dense.config.model
        called, forms = vit.name_of(shape), {}
        for runtime, title in rivals.RUNTIMES.items():
            try:
                rivals.check(runtime, dense.cls_token.device)
            except UsageError as error:
                absent(f"{called} in {title}", str(error))
                continue
            found, missing = rivals.rivals(runtime, vit.ViT(shape, 1000), (3, shape.image_size, shape.image_size))
            forms |= {f"{called} in {title} {rivals.version(runtime)}, {form.precision}": form for form in found}
            for sentence in missing:
                print(f"| {called}: {sentence} |  |  |  |  |", flush=True)
        for batch in (1, 8):
            x = images(batch)
            ours = {key: model.optimize(batch_size=batch) for key, model in models.items()}
            calls: dict[str, Callable[[], Any]] = {key: partial(model, x) for key, model in ours.items()}
            times = bench.time(**calls, **{key: partial(form.prepare(batch), x) for key, form in forms.items()})
            for rival, key in itertools.product(forms, ours):
                if rival.endswith("int8") == key.endswith("int8"):
                    goal = _GOALS.get((name, key, rival.split(" in ")[1].split()[0], rival.split(", ")[1]), "")
                    yield Figure.of(f"{name} B={batch} {key}, served / {rival}", goal, times[key], times[rival])


# By ViM, its form, the rival's runtime and precision.
_GOALS = {
    ("vim-s", "rate 0.4, float32", "OpenVINO", "float32"): "<= 1",
    ("vim-s", "rate 0.4, int8", "ONNX", "int8"): "<= 1",
    ("vim-s", "rate 0.4, int8", "OpenVINO", "int8"): "<= 1.4",
    ("vim-s", "saving 0.4, int8", "OpenVINO", "int8"): "<= 1.1",
}

FIGURES: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    "products": forward_over_products,
    "reference": reference_over_dense,
    "gain": gain,
    "savings": gain_of_savings,
    "bf16": half,
    "int8": int8,
    "scan": scan_over_limit,
    "token": cost_of_a_token,
    "merging": overhead_of_merging,
    "deit": against_deit,
}


def absent(what: str, why: str) -> None:
    """Print a row for what this machine or environment cannot measure."""
    print(f"| {what} |  | not measured: {why.splitlines()[0]} |  |  |", flush=True)


def gemm_rates(bench: Bench) -> str:
    """Return the GFLOP/s of each library at ViM-S's in_proj on one image, which tells how fast this machine is."""
    x, weight = torch.randn(197, 384), torch.randn(1536, 384)
    calls = {name: partial(gemms.LIBRARIES[name](weight, len(x)), x) for name in gemms.libraries()}
    times = bench.time(4 * bench.rounds, **calls)
    rate = {name: 2 * x.numel() * len(weight) / statistics.median(times[name]) / 1e9 for name in calls}
    return ", ".join(f"{name} {rate[name]:.0f}" for name in calls)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--cpu-time", action="store_true", help="measure this thread's processor time instead of the clock"
    )
    parser.add_argument("--only", help=f"some of {','.join(FIGURES)}")
    options = parser.parse_args()
    if options.cpu_time and options.threads > 1:
        parser.error("--cpu-time sees one thread only")
    if unknown := set((options.only or "").split(",")) - {"", *FIGURES}:
        parser.error(f"no figure is called {', '.join(sorted(unknown))}")
    keep_freed()  # as the command line does: without it the allocator returns memory between forwards
    bench = Bench(options.rounds, thread_time if options.cpu_time else perf_counter)
    with threads(options.threads):
        backend = bench.model("vim-ti").backend
        load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
        how = "processor time of the thread" if options.cpu_time else "wall clock"
        print(
            f"{processor_name()}, {options.threads} thread(s), torch {torch.__version__}, stm {stm.__version__},"
            f" backend {backend.name}"
        )
        print(
            f"{how}, {options.rounds} rounds, {os.cpu_count()} processors{load}, kernels up to"
            f" {torch.backends.cpu.get_cpu_capability()}\nproducts in GFLOP/s: {gemm_rates(bench)}\n"
        )
        print("| what | goal | median ratio | quartiles | the second, ms |\n| --- | --- | --- | --- | --- |")
        for name, figures in FIGURES.items():
            if options.only is None or name in options.only.split(","):
                for ratio in figures(bench):
                    print(
                        f"| {ratio.what} | {ratio.goal} | {ratio.ratio:.3f} | {ratio.low:.3f} to {ratio.high:.3f} |"
                        f" {ratio.base:.2f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
