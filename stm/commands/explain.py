"""`stm explain`: the changes that merging makes in a model, as figures with their data."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from stm.artifact import atomic
from stm.bake import bake
from stm.commands.fit_set import fit_set
from stm.config import Config
from stm.data.images import enlarged
from stm.data.open import is_embedded, open_samples, photographs
from stm.data.sets import SampleSet, from_files, iterate
from stm.errors import DataError, UsageError
from stm.explain import folder as explanation
from stm.explain.costs import cost_map
from stm.explain.measurements import RULES
from stm.findings import ExplainReport
from stm.fitting import Fitting
from stm.fitting import fit as fit_costs
from stm.loading import open_classifier
from stm.measure import flops
from stm.measure.environment import environment_of
from stm.measure.equal_cost import solve_peer
from stm.merging.plan import Plan
from stm.model.vim import ViM
from stm.model_names import name_of
from stm.options import FitOptions, MergeOptions, ModelOptions
from stm.peers import PEERS
from stm.plots import style as plots
from stm.progress import OnProgress
from stm.recipe import DRAWN

DEFAULT_IMAGES = 3
PLACES = 98  # of each side: every distance at 197 tokens
PICTURE_PIXELS = 448  # the shortest side of a picture, so that single patches stay visible


def explain(
    model: str,
    images: Sequence[str | Path] = (),
    source: ModelOptions = ModelOptions(),
    merge: MergeOptions = MergeOptions(),
    *,
    peer: str | None = None,
    fit: FitOptions = FitOptions(),
    block: int | None = None,
    places: int = PLACES,
    out: str | Path | None = None,
    force: bool = False,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> ExplainReport:
    """Run `stm explain`: draw the paper's figures and tables of states for a model and images, and write their data.

    Args:
        model, source: a MODEL, and how to open it; see `stm.load`.
        images: files. Without any, some embedded images are taken.
        merge: how to compress a dense model.
        peer: a method of `stm.peers.PEERS` to explain instead. It saves the operations that merging would save.
        fit: the images that the costs come from, and a fitted schedule with them.
        block: the block whose maps are shown and before which single tokens are merged. Default: the first block after
            a merge.
        places: the most distances per side that are measured.
        out: the folder to write, named after the model by default.
        force: replace a folder that holds nothing but the files of this command.
        seed: chooses among the embedded images.

    Raises:
        UsageError: options that exclude each other, a budget out of reach, or an output that cannot be written.
        DataError: an image that cannot be read.
        StmError: matplotlib is not installed; what reading the model raises.
    """
    plots.require()
    if len(images) > explanation.MOST_IMAGES:
        raise UsageError(
            f"{len(images)} images, expected at most {explanation.MOST_IMAGES}: each gets figures of its own"
        )
    # All that can be checked without the model is checked first: opening one may mean a download.
    output = Path(out) if out is not None else Path(f"{name_of(model)}-explained")
    atomic.check(output, explanation.file_names(), force=force)
    if peer is not None and peer not in PEERS:
        raise UsageError(f"{peer!r} is not a peer", f"the peers are {', '.join(PEERS)}")
    opened = open_classifier(model, source, on_progress)
    fitting = _fitting(opened, fit, seed, source.token, on_progress)
    small = _compressed(opened, model, merge, fitting, seed)
    title = _title(small)
    if peer is not None:
        small, title = _as_peer(small, peer, seed)
    shape = small.config.model
    depth, lengths = shape.depth, (small.plan or Plan()).lengths(shape)
    # Block 0 is no choice: a plan acts after a block, so no token can be merged before block 0.
    if block is None:
        block = next((number for number in range(1, depth) if lengths[number] < lengths[0]), depth // 2)
    if not 1 <= block < depth:
        raise UsageError(f"block is {block}, expected 1 to {depth - 1}: a single token is merged before it")
    samples = _samples(images, small.config, seed)
    # All images are one batch, because each figure needs all states of its image. `MOST_IMAGES` bounds the memory.
    (batch,) = iterate(samples, small.config.preprocessing, batch_size=len(samples))
    for error in batch.errors.values():  # the first one is enough: the user named these few files
        raise DataError(error)
    pictures = [
        (sample.file, enlarged(sample, small.config.preprocessing, PICTURE_PIXELS)) for sample in samples.samples
    ]
    measured = explanation.measure(small, batch.images, pictures, block=block, places=places, on_progress=on_progress)
    # The merges of a schedule are those of every image; a peer's are those of the first one.
    costs = cost_map(fitting, measured.images[0].groups)
    with atomic.replacing(output, explanation.file_names(), force=force) as folder:
        with plots.style():
            files = explanation.write(folder, measured, small, costs, title)
        report = ExplainReport(
            command="explain",
            model=model,
            environment=environment_of(small),
            output=str(output),
            data=samples.name,
            images=tuple(sample.file for sample in samples.samples),
            block=block,
            tokens_per_block=lengths,
            fading=measured.fits,
            losses={rule: _mean([row.cls for row in measured.losses if row.rule == rule]) for rule in RULES},
            plan_change=tuple(_mean(changes) for changes in measured.plan),
            costs_from=costs.images,
            files=(*files, explanation.SUMMARY),
        )
        (folder / explanation.SUMMARY).write_text(report.to_json() + "\n", encoding="utf-8")
    return report


def _fitting(model: ViM, options: FitOptions, seed: int, token: str | None, on_progress: OnProgress | None) -> Fitting:
    """Return the costs of the dense model, whose every parameter a compressed one holds."""
    dense, recipe = model.with_plan(None), model.config.recipe
    about = None if recipe is None else recipe.fit
    if not (options.given("fit_on") or options.given("fit_images")) and about is not None and about.data == DRAWN:
        # Those of its own fit, which are kept.
        options, seed = dataclasses.replace(options, fit_images=about.n), about.seed
    images, _ = fit_set(options, dense.config, seed=seed, token=token, on_progress=on_progress)
    return fit_costs(dense, images, keep=not options.no_cache, on_progress=on_progress)


def _compressed(model: ViM, name: str, merge: MergeOptions, fitting: Fitting, seed: int) -> ViM:
    """Return the model itself if it is compressed, else the model compressed as `merge` says."""
    if model.plan is None:
        return bake(model, merge, fitting=fitting if merge.order == "fitted" else None, seed=seed)
    merge.refuse(f", but {name} is already compressed", "explain its dense source instead, or leave it out")
    return model


def _as_peer(ours: ViM, name: str, seed: int) -> tuple[ViM, str]:
    """Return the model under a peer's plan, solved for the honest operations of ours, and its title."""
    dense = ours.with_plan(None)
    solved = solve_peer(dense.config, name, flops.count(ours.config).honest_saving, seed=seed)
    # A plan is solved on the processor. Its buffers must be on the model's device before it runs.
    plan = solved.plan.to(dense.cls_token.device)
    return dense.with_plan(plan), f"{PEERS[name].title}, {solved.flops.honest_saving:.1%} of the operations saved"


def _samples(images: Sequence[str | Path], config: Config, seed: int) -> SampleSet:
    """Return the images that were named, else a few that suit the model: digits for vim-digits, else photographs."""
    if images:
        return from_files(images)
    return open_samples(None, config=config, limit=DEFAULT_IMAGES, seed=seed) if is_embedded(config) else photographs()


def _title(model: ViM) -> str:
    """Return the title of the figures: how the model was merged, and how much that saves."""
    recipe, shape = model.config.recipe, model.config.model
    method = "no method" if recipe is None else f"{recipe.method}, {recipe.schedule} order"
    return f"{method}, {model.schedule.saving(shape.depth):.1%} of the token-layers saved"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
