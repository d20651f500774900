"""`stm info`: what a model or folder is, what it costs and where it came from. Nothing is run."""

from typing import Any

from rich.console import Group, RenderableType

from stm.reports import InfoReport
from stm_cli import _options as o
from stm_cli._format import fields, flops_rows, measured_rows, source_text, staircase, tokens
from stm_cli._output import Output

EXAMPLES = ("stm info vim-digits-stm40", "stm info vim-s", "stm info someone/their-vim --file weights.pth --json")


def run(
    model: o.Model,
    file: o.File = None,
    revision: o.Revision = None,
    token: o.Token = None,
    image_size: o.ImageSize = None,
    class_token: o.ClassToken = None,
    no_divide_out: o.NoDivideOut = False,
    ema: o.Ema = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Show schedule, tokens per block, FLOPs, parameters, provenance and what was measured."""
    from stm import pipeline

    output = Output(json=json, quiet=quiet)
    with output.progress() as on_progress:
        report = pipeline.info(
            model,
            file=file,
            revision=revision,
            token=token,
            image_size=image_size,
            class_token=class_token,
            divide_out=False if no_divide_out else None,
            ema=ema,
            on_progress=on_progress,
        )
    output.report(report, lambda: screen(report), str(report.flops.paper))
    for note in report.notes:
        output.note(note)
    if report.config["schedule"]["steps"]:
        output.next(("stm", "eval", model))
    else:
        output.next(("stm", "compress", model))


def screen(report: InfoReport) -> RenderableType:
    """The folder's own words, and the counts that follow from them."""
    config = report.config
    rows = [
        ("model", _shape(config)),
        ("tokens", f"{staircase(report.tokens_per_block)}  {tokens(report.tokens_per_block)}"),
        *((("merging", _merging(config)),) if config["schedule"]["steps"] else ()),
        *flops_rows(report.flops, exact=True),
        ("parameters", f"{report.parameters:,}"),
        ("source", source_text(report.source)),
    ]
    for measured in report.measured:
        rows += measured_rows(measured)
    return Group(report.model, fields(rows))


def _shape(config: dict[str, Any]) -> str:
    model = config["model"]
    return (
        f"ViM, {config['num_classes']} classes, {model['image_size']} x {model['image_size']} pixels, patch {model['patch']} "
        f"stride {model['stride']}, D = {model['d_model']}, N = {model['d_state']}, {model['depth']} blocks, "
        f"class token in the {model['class_token']}, {config['dtype']}"
    )


def _merging(config: dict[str, Any]) -> str:
    protection = config["protection"]
    parts = [f"{protection['weights']} weights"]
    if protection["weights"] == "hsp":
        parts = [f"hsp weights ({protection['mode']}{', normalized' if protection['normalized'] else ''})"]
    if config["recipe"] is not None:
        parts.insert(0, f"{config['recipe']['method']}: {config['recipe']['schedule']}")
    parts.append(f"step scale p = {protection['step_scale']:g}")
    parts.append("span conv" if protection["span_conv"] else "plain conv")
    return ", ".join(parts)
