"""Measure everything about a GPU that matters here, in one call of under eight minutes.

    python benchmarks/gpu.py --out results

It runs whole models with random weights, dense and compressed, eager and as CUDA graphs; mamba-ssm's kernels in the
same run if they are installed; the kernels alone; a training step; and a profile. Variants that are compared are
interleaved. It writes gpu.json, and gpu.md for people. A section for which there is no time is left out and named. Run
pytest -m gpu before it.
"""

import argparse
import dataclasses
import datetime
import json
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from gpu_sections import RATE, ROUNDS, Clock, kernels_alone, profile, training, whole_models

from stm import backends
from stm.measure.environment import environment

SIZES = {"ViM-Ti": 192, "ViM-S": 384, "ViM-B": 768}  # d_model
BATCHES = (1, 8, 128)


def machine(device: torch.device) -> dict[str, Any]:
    """Return the card, its driver and the date."""
    about: dict[str, Any] = dataclasses.asdict(environment(device, dtype="", backend=""))
    about |= {"date": datetime.date.today().isoformat(), "cuda": torch.version.cuda, "driver": None}
    for name in ("triton", "mamba_ssm"):
        about[name] = backends.status(name, device.type)[1]
    if device.type == "cuda":
        query = [
            "nvidia-smi",
            "--query-gpu=driver_version,clocks.max.sm,power.limit",
            "--format=csv,noheader",
            f"--id={device.index or 0}",
        ]
        try:
            about["driver"] = subprocess.run(
                query, capture_output=True, text=True, check=True, timeout=30
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError) as error:
            about["driver"] = f"unknown: {error}"
    return about


def markdown(results: dict[str, Any]) -> str:
    """Return the tables for people: milliseconds per image for models, per call for kernels."""
    about = results["machine"]
    lines = [
        f"# {about['name']}, {about['date']}",
        (
            f"Driver, largest clock, power limit: {about['driver']}. torch {about['torch']}, CUDA {about['cuda']};"
            f" Triton: {about['triton']}; mamba-ssm: {about['mamba_ssm']}. Medians of {ROUNDS} interleaved samples;"
            f" random weights; 224 x 224; compressed at {RATE:.0%}."
        ),
    ]
    for title, key, row_keys, column in (
        ("Whole models, ms an image", "models", ("model", "batch", "dtype"), "variant"),
        ("Kernels of one ViM-S block, ms a call", "kernels", ("dtype", "batch", "tokens"), "what"),
        ("Four blocks of ViM-S, ms a step", "training", ("dtype", "batch"), "what"),
    ):
        rows = results.get(key, [])
        columns = list(dict.fromkeys(row[column] for row in rows))
        table: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
        for row in rows:
            share = row["batch"] if key == "models" else 1
            table[tuple(str(row[k]) for k in row_keys)][row[column]] = f"{row['ms'] / share:.4f}"
        if rows:
            lines += [
                "",
                f"## {title}",
                "| " + " | ".join((*row_keys, *columns)) + " |",
                "|" + " --- |" * (len(row_keys) + len(columns)),
            ]
            lines += [
                "| " + " | ".join((*names, *(cells.get(c, "") for c in columns))) + " |"
                for names, cells in table.items()
            ]
    for variant, shares in results.get("profile", {}).items():
        whole = sum(shares.values())
        lines += [
            "",
            f"## Where the time goes: ViM-S, {variant}, bf16, batch {results['profile_batch']}, {whole:.2f} ms",
            "| kernel | ms | share |",
        ]
        lines += [
            "| --- | --- | --- |",
            *(f"| {name} | {ms:.3f} | {ms / whole:.1%} |" for name, ms in list(shares.items())[:15]),
        ]
    lines += [
        "",
        "## Not measured",
        *(f"- {sentence}" for sentence in results["not_measured"] or ["Nothing was left out."]),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure a GPU.")
    parser.add_argument("--out", type=Path, default=Path("."))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--limit", type=float, default=460, help="seconds")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes: does it run?")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    clock = Clock(device, options.limit)
    names = [
        name
        for name in backends.ORDER
        if backends.MADE_FOR.get(name) == device.type and backends.status(name, device.type)[0]
    ]
    results: dict[str, Any] = {"machine": machine(device), "not_measured": []}
    for name in ("triton", "mamba_ssm"):
        if name not in names:
            results["not_measured"].append(f"{name}: {backends.status(name, device.type)[1]}")
    names = names or ["blocked"]
    sizes, batches, lengths, width = SIZES, BATCHES, (197, 140, 128, 100), SIZES["ViM-S"]
    if options.smoke:
        sizes, batches, lengths, width = {"tiny": 16}, (1,), (5,), 16
    options.out.mkdir(parents=True, exist_ok=True)

    def write() -> None:  # after every section: what has been measured is kept, whatever comes
        (options.out / "gpu.json").write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
        (options.out / "gpu.md").write_text(markdown(results))

    results["models"], missing = whole_models(clock, names, sizes, batches)
    results["not_measured"] += missing
    write()
    if device.type == "cuda":
        results["profile_batch"] = max(batches)
        results["profile"] = profile(clock, names[0], width, max(batches))
        write()
    results["kernels"], missing = kernels_alone(clock, names, width, batches, lengths)
    results["not_measured"] += missing
    write()
    if clock.left > 30:
        results["training"] = training(clock, names, width, 1 if options.smoke else 32)
    else:
        results["not_measured"].append("training: out of time")
    write()
    print((options.out / "gpu.md").read_text())


if __name__ == "__main__":
    main()
