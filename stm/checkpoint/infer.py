"""Infer a model from the names and shapes of a checkpoint's tensors, and from what stands beside them (`stored`).

Names and shapes are those of the official code (hustvl/Vim vim/models_mamba.py, bimamba v2). The place of the class
token and the sum of the directions decide every number. If nothing tells them, that is a question to the user, never an
assumption.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from stm.checkpoint.geometry import geometry_of
from stm.checkpoint.preprocess import preprocessing
from stm.checkpoint.stored import OWN, Asked, Said, Stored
from stm.config import CLASS_TOKENS, ModelConfig, Preprocess
from stm.errors import CheckpointError, Question, UsageError, listed
from stm.model.positions import interpolation_note
from stm.options import words

Shapes = Mapping[str, tuple[int, ...]]

# Tensors of a mixer that each direction has for itself; {} is empty for the forward direction, _b for the backward one.
DIRECTED = (
    "conv1d{}.weight",
    "conv1d{}.bias",
    "x_proj{}.weight",
    "dt_proj{}.weight",
    "dt_proj{}.bias",
    "A{}_log",
    "D{}",
)

_RUNS = (
    "stm runs ViM as in hustvl/Vim's midclstok models (bimamba v2, RMSNorm, one class token, absolute positions),"
    " VideoMamba's image models, and Mamba-R, which has several class tokens"
)
_SCAN_NORM = r"layers\.\d+\.mixer\.layernorm\..*"  # the sign of a LayerNorm on the scan's output
_REGISTERS = "pos_embed_cls"  # the sign of a Mamba-R (wangf3014/Mamba-Reg models_mamba.py)
_DENSE = "a segmentation or detection checkpoint, of which a ViM may be the backbone: it does not classify images"
_BACKBONE = "its backbone alone, for features(), if all of it is there: --backbone"
# Signs of other models, each with the model in words, so that the message says more than which tensors are missing.
_REFUSED = (
    (r"(decode_head|auxiliary_head|sem_seg_head|roi_heads?|rpn_head|bbox_head|mask_head|proposal_generator)\.", _DENSE),
    (r"levels\.\d+\.blocks\.\d+\.", "a MambaVision: a hybrid of convolutions, scans and attention"),
    (r"layers\.\d+\.mixer\.(multi_scan|\w+_[0-9](\.|$))", "a LocalVim: it scans windows in several orders"),
    (r"(layers|blocks)\.\d+\.(\w+\.)?direction_\w+", "a PlainMamba: its scans are two-dimensional"),
    (
        r"layers\.\d+\.blocks\.\d+\.|(.*\.)?A_logs$",
        "of VMamba's family (VMamba, EfficientVMamba): its scans are two-dimensional",
    ),
    (r"(layers|blocks)\.\d+\.mixer\.norm\.", "a ViM with a norm inside its mixers that stm does not know"),
    (r"(layers|blocks)\.\d+\.mlp\d?\.", "an Adventurer or another Mamba with an MLP in its blocks"),
    (
        r"to_patch_embedding\.|layers\.\d+\.(forward_conv1d|backward_conv1d|ssm)\.",
        "another project's VisionMamba: its blocks are not those of hustvl/Vim",
    ),
    (r"blocks\.\d+\.attn\.", "a vision transformer (DeiT, ViT): its blocks hold attention"),
    (r"layers\.\d+\.mixer\.conv1d_weight", "the weights file of a folder that stm wrote: give the folder"),
    (r"rope\.|(.*\.)?freqs(_cos|_sin)?", "a ViM with rotary position embeddings (RoPE)"),
    (r"cls_token_(head|tail)", "a ViM with a double class token"),
    (r"(.*[._])?reg(ister)?_?tokens?", "a ViM with register tokens beside its class token"),
    (r"temporal_pos_embedding", "a VideoMamba for video"),
    (r"(layers\.\d+\.norm|norm_f)\.bias", "a ViM with LayerNorm"),
    (r"layers\.\d+\.mixer\.gamma", "a ViM with layer scale"),
)
# What every ViM that stm runs has, a backbone apart from the last two of these. A missing group tells more than the
# names of its tensors.
_NEEDED = (
    (r"layers\.\d+\.mixer\..*", "layers.*.mixer", "not a ViM"),
    (r"layers\.\d+\.mixer\.conv1d_b\..*", "layers.*.mixer.conv1d_b", "a ViM with bimamba v1 or with one direction"),
    (r"pos_embed", "pos_embed", "a ViM without absolute position embeddings"),
    (r"cls_token", "cls_token", "a ViM without a class token"),
    (r"head\..*", "head", "a ViM without a classification head"),
)


class Inferred(NamedTuple):
    """A model as its checkpoint tells it.

    Args:
        trained: the model that the weights are of, if it has another image size: the table of positions is to be
            interpolated.
        notes: a sentence for everything that was assumed, or taken from elsewhere than the tensors.
        by_name: the options that a name decided; given to `read`, they make the same model of a renamed file.
        question: the question to answer before the model means anything, if the class token's place or the sum of the
            directions is unknown, or two sources contradict each other. It is not raised here: a file that turns out to
            be damaged is not worth an answer.
    """

    model: ModelConfig
    trained: ModelConfig | None
    num_classes: int
    preprocessing: Preprocess
    notes: tuple[str, ...]
    by_name: dict[str, Any]
    question: Question | None


# The two models that have these tensors, in words, and the options that say so.
_MODELS = {
    "a ViM as hustvl/Vim's": {"class_token": "middle", "divide_out": True},
    "a VideoMamba": {"class_token": "head", "divide_out": False},
}


def infer(where: str, shapes: Shapes, stored: Stored, asked: Asked) -> Inferred:
    """Return the model of a checkpoint. What is asked wins over what is stored, and the tensors win over both.

    Args:
        where: the file's name, for messages.
        shapes: of every tensor, by official name.

    Raises:
        CheckpointError: stm does not run this variant; tensors are missing, unexpected or mis-shaped; or the image size
            is stored and impossible, or unknown.
        UsageError: an argument that no model takes, or that the tensors contradict.
    """
    if asked.class_token not in (None, *CLASS_TOKENS):
        raise UsageError(f"class_token is {asked.class_token!r}, expected {' or '.join(CLASS_TOKENS)}")
    # From the general to the exact: a file of another kind is called by its kind, before hundreds of tensors are
    # reported as missing.
    _refuse_variants(where, shapes, asked.backbone)
    depth = _depth(shapes)
    _refuse_names(where, shapes, asked.backbone)
    config, classes, patches = _dimensions(where, shapes)
    geometry = geometry_of(where, config["patch"], patches, stored, asked.image_size)
    question: Question | None = None
    try:
        token, divide, sources = _reading(where, stored, asked, config["class_tokens"])
    except Question as open_question:
        # Any answer serves the checks that follow: the shapes do not depend on it.
        question, token, divide, sources = open_question, "middle", True, ()
    try:
        model = ModelConfig(
            image_size=geometry.size,
            stride=geometry.stride,
            depth=depth,
            class_token=token,
            divide_out=divide,
            **config,
        )
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error
    trained = None if geometry.table is None else replace(model, image_size=geometry.table)
    parts = official_shapes(trained or model, classes)
    _refuse_shapes(where, shapes, {name: shape for name, shape in parts.items() if name in shapes})
    prep, remarks = preprocessing(where, model, stored, asked)
    # A recipe records these options: without the name, the file would be read as another model.
    by_name: dict[str, Any] = {}
    for name, value, said in (("class_token", token, stored.class_token), ("divide_out", divide, stored.divide_out)):
        if said and said[0].by != OWN:
            by_name[name] = value
    if stored.size_by_name is not None and stored.input_size is None:
        by_name["image_size"] = geometry.size
    note = geometry.note if trained is None else interpolation_note(trained, model)
    notes = (*filter(None, (note,)), *sources, *remarks)
    return Inferred(model, trained, classes, prep, notes, by_name, question)


def official_shapes(model: ModelConfig, classes: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the official model's tensors, by name; empty ones stand for what a backbone lacks."""
    D, E, N, R, W = model.d_model, model.d_inner, model.d_state, model.dt_rank, model.d_conv
    n = model.class_tokens
    # Several class tokens have positions of their own. One shares the table of the patches.
    registers: dict[str, tuple[int, ...]] = {}
    if n > 1:
        registers |= {"pos_embed": (1, model.patches, D), _REGISTERS: (1, n, D)}
    if model.neck is not None:
        registers |= {"neck.weight": (model.neck, D), "norm_neck.weight": (model.d_head,)}
    directed = dict(zip(DIRECTED, ((E, 1, W), (E,), (R + 2 * N, E), (E, R), (E,), (E, N), (E,)), strict=True))
    block = {"norm.weight": (D,), "mixer.in_proj.weight": (2 * E, D), "mixer.out_proj.weight": (D, E)}
    if model.scan_norm:
        block |= {"mixer.layernorm.weight": (E,), "mixer.layernorm.bias": (E,)}
    block |= {f"mixer.{name.format(suffix)}": shape for suffix in ("", "_b") for name, shape in directed.items()}
    return {
        "cls_token": (1, n, D),
        "pos_embed": (1, model.tokens, D),
        **registers,
        "patch_embed.proj.weight": (D, model.in_chans, model.patch, model.patch),
        "patch_embed.proj.bias": (D,),
        **{f"layers.{i}.{name}": shape for i in range(model.depth) for name, shape in block.items()},
        "norm_f.weight": (D,),
        "head.weight": (classes, model.d_head),
        "head.bias": (classes,),
    }


def official_names(names: Collection[str], backbone: bool = False) -> Collection[str]:
    """Return the names of the tensors of the official model that has the most of these names.

    Args:
        backbone: whether it has no head, and a class token only if that is among the names.
    """
    several = _REGISTERS in names
    neck = 1 if several and "neck.weight" in names else None
    # Only names count here, and any config of that kind and depth has the same names.
    tokens = 1 + several if "cls_token" in names or not backbone else 0
    norm = any(re.fullmatch(_SCAN_NORM, name) for name in names)
    kind = ModelConfig(
        image_size=224, d_model=1, dt_rank=1, depth=_depth(names), class_tokens=tokens, neck=neck, scan_norm=norm
    )
    return [name for name, shape in official_shapes(kind, 0 if backbone else 1).items() if all(shape)]


def head_inputs(shapes: Shapes) -> int:
    """Return the number of inputs of the head that belongs to a model's other tensors; 0 if it is unknown."""
    first = "neck.weight" if _REGISTERS in shapes and "neck.weight" in shapes else "norm_f.weight"
    width = next((shapes[name] for name in (first, "layers.0.norm.weight") if name in shapes), ())
    tokens = shapes.get("cls_token", ()) if _REGISTERS in shapes else ()
    return width[0] * (tokens[1] if len(tokens) == 3 else 1) if width else 0


def _depth(names: Collection[str]) -> int:
    return len({name.split(".")[1] for name in names if name.startswith("layers.")})


def _refuse_variants(where: str, names: Collection[str], backbone: bool) -> None:
    for pattern, what in _REFUSED:
        if sign := next((name for name in names if re.fullmatch(rf"(.*\.)?({pattern}).*", name)), None):
            raise CheckpointError(f"{where} is {what} ({sign})", _BACKBONE if what == _DENSE else _RUNS)
    # A FastVim and the Vim-B beside it share this norm. A FastVim has no class token, and pools tokens before it scans.
    norm = next((name for name in names if re.fullmatch(rf"(.*\.)?{_SCAN_NORM}", name)), None)
    if norm is not None and not any(re.fullmatch(r"(.*\.)?cls_token", name) for name in names):
        what = "a FastVim, by its norm and without a class token: it pools tokens before it scans"
        raise CheckpointError(f"{where} is {what} ({norm})", _RUNS)
    for pattern, needed, what in _NEEDED:
        spared = needed in ("cls_token", "head")  # by a backbone
        if not any(re.fullmatch(pattern, name) for name in names) and not (backbone and spared):
            hint = f"{_RUNS}; {_BACKBONE}" if spared else _RUNS
            raise CheckpointError(f"{where} is {what}: it has no {needed}, but {listed(names)}", hint)


def _refuse_names(where: str, shapes: Shapes, backbone: bool) -> None:
    expected = official_names(shapes, backbone)
    missing = [name for name in expected if name not in shapes]
    unexpected = [name for name in shapes if name not in expected]
    if missing or unexpected:
        parts = [
            f"{len(names)} {kind} ({listed(names)})"
            for names, kind in ((missing, "missing"), (unexpected, "unexpected"))
            if names
        ]
        raise CheckpointError(
            f"{where} does not hold the tensors of a ViM with {_depth(shapes)} blocks: {', '.join(parts)}", _RUNS
        )


def _refuse_shapes(where: str, shapes: Shapes, expected: Shapes) -> None:
    wrong = [f"{name} {shapes[name]} instead of {shape}" for name, shape in expected.items() if shapes[name] != shape]
    if wrong:
        raise CheckpointError(
            f"{where}: {len(wrong)} mis-shaped ({listed(wrong)})", "it was damaged or edited: get the original"
        )


def _dimensions(where: str, shapes: Shapes) -> tuple[dict[str, Any], int, int]:
    """Return the model's dimensions, its number of classes and the number of patches.

    If blocks differ in the shape of a tensor, the commonest shape counts. `_refuse_shapes` then names the others.
    """

    def shape(pattern: str, rank: int) -> tuple[int, ...]:
        matching = {name: shape for name, shape in shapes.items() if re.fullmatch(pattern, name)}
        fitting = Counter(shape for shape in matching.values() if len(shape) == rank)
        if not fitting:
            name, wrong = next(iter(matching.items()))
            raise CheckpointError(f"{where}: {name} is {wrong}, expected {rank} dimensions", _RUNS)
        return fitting.most_common(1)[0][0]

    (D,) = shape(r"layers\.\d+\.norm\.weight|norm_f\.weight", 1)
    E, N = shape(r"layers\.\d+\.mixer\.A(_b)?_log", 2)
    _, R = shape(r"layers\.\d+\.mixer\.dt_proj(_b)?\.weight", 2)
    _, _, W = shape(r"layers\.\d+\.mixer\.conv1d(_b)?\.weight", 3)
    _, C, height, width = shape(r"patch_embed\.proj\.weight", 4)
    _, L, _ = shape("pos_embed", 3)
    tokens = shape("cls_token", 3)[1] if "cls_token" in shapes else 0
    classes = shape(r"head\.weight", 2)[0] if "head.weight" in shapes else 0
    several = _REGISTERS in shapes
    neck = shape(r"neck\.weight", 2)[0] if several and "neck.weight" in shapes else None
    patches = L if several else L - tokens
    # The checks that follow guard divisions. `ModelConfig` and `_refuse_shapes` check everything else.
    if classes < 1 and "head.weight" in shapes:
        raise CheckpointError(f"{where} has a head without classes (head.weight), expected at least 1", _RUNS)
    if several and tokens < 2:
        raise CheckpointError(
            f"{where} has {_REGISTERS} as a Mamba-R, and {tokens} class tokens, expected several", _RUNS
        )
    if not several and tokens != 1 and "cls_token" in shapes:
        raise CheckpointError(f"{where} is a ViM with {tokens} class tokens (cls_token), expected 1", _RUNS)
    if height != width:
        raise CheckpointError(
            f"{where} has patches of {height} x {width} pixels (patch_embed.proj.weight), expected square ones", _RUNS
        )
    if patches < 1:
        beside = "" if several or not tokens else " and one class token"
        raise CheckpointError(f"{where} has {L} positions (pos_embed), expected a grid of patches{beside}", _RUNS)
    if D < 1 or E % D:
        raise CheckpointError(f"{where} has an inner width of {E} (A_log), expected a multiple of its width {D}", _RUNS)
    config = {"d_model": D, "expand": E // D, "d_state": N, "dt_rank": R, "d_conv": W, "in_chans": C, "patch": height}
    norm = any(re.fullmatch(_SCAN_NORM, name) for name in shapes)
    return config | {"class_tokens": tokens, "neck": neck, "scan_norm": norm}, classes, patches


def _reading(where: str, stored: Stored, asked: Asked, class_tokens: int) -> tuple[str, bool, tuple[str, ...]]:
    """Return the class token's place, whether the directions are averaged, and sentences about the sources."""
    if class_tokens > 1:  # the tensors tell: no other model has several
        if asked.class_token == "head" or asked.divide_out is False:
            raise UsageError(
                f"{where} is a Mamba-R: its {class_tokens} class tokens are spread, and its directions are averaged",
                "leave out --class-token and --no-divide-out",
            )
        what = f"a Mamba-R with {class_tokens} class tokens, spread among the patches; the two directions are averaged"
        return "middle", True, (what,)
    if not class_tokens and asked.class_token is not None:
        raise UsageError(f"{where} has no class token, and class_token was given", "leave out --class-token")
    said: dict[str, tuple[Said[Any], ...]] = {"class_token": stored.class_token, "divide_out": stored.divide_out}
    if not class_tokens:
        said["class_token"] = (Said("middle", OWN),)  # there is none: any place is right
    values: dict[str, Any] = {}
    by_name: dict[str, list[str]] = {}  # from a name in words to what it decided; settings get no note
    overruled = []
    for name, all_said in said.items():
        wanted = values[name] = getattr(asked, name)
        if not all_said:
            continue
        first, in_words = all_said[0], _IN_WORDS[name]
        against = next((each for each in all_said if each.value != (first.value if wanted is None else wanted)), None)
        if against is None:
            # An option that repeats what a name says gets the note of the name. A recipe passes as options what a name
            # had said, and must make the same bytes.
            values[name] = first.value
            if first.by != OWN:
                by_name.setdefault(first.by, []).append(in_words(first.value))
        elif wanted is None:
            # Two sources differ, and neither is more to be trusted: the user decides.
            message = f"{where}: by {first.by} {in_words(first.value)}, but by {against.by} {in_words(against.value)}"
            raise Question(message, _answers(asked))
        else:
            overruled.append(f"by {against.by} {in_words(against.value)}: overruled, as asked")
    notes = [f"by {by} {' and '.join(decided)}" for by, decided in by_name.items()] + overruled
    if values["class_token"] is None:
        raise Question(
            f"{where} has the tensors that a ViM and a VideoMamba share, and neither its settings nor its name tells"
            " which it is: where its class token is and whether its directions are averaged or added",
            _answers(asked),
        )
    if values["divide_out"] is None and values["class_token"] == "middle":
        values["divide_out"] = True
        others = "have the class token in the middle" if class_tokens else "are known without a class token"
        notes.append(f"the two directions are averaged, as in hustvl/Vim's models: no others {others}")
    if values["divide_out"] is None:
        raise Question(f"{where}: nothing tells whether its two directions are averaged or added", _answers(asked))
    return values["class_token"], values["divide_out"], tuple(notes)


def _answers(asked: Asked) -> dict[str, list[str]]:
    """Return the possible models in words, each with the options that choose it beside those that were given."""
    return {
        what: words({name: value for name, value in options.items() if getattr(asked, name) is None})
        for what, options in _MODELS.items()
    }


_IN_WORDS: dict[str, Callable[[Any], str]] = {
    "class_token": lambda value: f"the class token is {'in the middle' if value == 'middle' else 'at the head'}",
    "divide_out": lambda value: f"the two directions are {'averaged' if value else 'added'}",
}
