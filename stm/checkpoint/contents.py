"""What a checkpoint says of its model: everything but the tensors. The tensors are torch's or headers (`leaves`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack

from stm.checkpoint import file as checkpoint_file
from stm.checkpoint.class_names import Named, names_in
from stm.checkpoint.find import choose, find, largest, settings, trunk_of
from stm.checkpoint.infer import DIRECTED, infer, official_shapes
from stm.checkpoint.leaves import Header, Leaf, dtype_of, is_tensor, kind_of
from stm.checkpoint.stored import Asked, Stored
from stm.config import ModelConfig, Preprocess, Size
from stm.errors import CheckpointError, Question, UsageError, listed
from stm.options import ModelOptions

_STATES = ("model", "state_dict")
_KINDS = tuple(f"{dtype} strided on cpu" for dtype in ("float32", "float16", "bfloat16", "float64"))


class Options(TypedDict, total=False):
    """How to read a checkpoint; each may be left out.

    Args:
        image_size, class_token, divide_out: properties that the tensors do not show; these win over the file's settings
            and its name. For another size than the file's own the table of positions is interpolated.
        backbone: take the backbone alone, without a head, and without a class token if the file has none.
        ema: take the averaged weights (`model_ema`).
        weights_key: where the weights are, if the file holds several: `teacher`, `model_ema.module`.
        mean, std, crop_ratio, interpolation: of the preprocessing; they win over the file's settings.
        repo: the file's repository on the Hub; its name is read too, after the file's.
    """

    image_size: Size | None
    class_token: str | None
    divide_out: bool | None
    backbone: bool
    ema: bool
    weights_key: str | None
    mean: float | Sequence[float] | None
    std: float | Sequence[float] | None
    crop_ratio: float | None
    interpolation: str | None
    repo: str | None


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a checkpoint says of its model.

    Args:
        model: the shape of the model.
        trained: the model that the weights are of, if its images have another size: the table of positions is
            interpolated.
        preprocessing: from a photograph to the input of the model.
        source_sha256: of the file's bytes.
        notes: sentences about what was taken from names, assumed or ignored.
        by_name: the options that a name decided; given to `read`, they make the same model of a renamed file.
        label_names: of the classes, by index, if the file has them.
    """

    model: ModelConfig
    num_classes: int
    preprocessing: Preprocess
    source_sha256: str
    notes: tuple[str, ...]
    by_name: dict[str, Any] = field(default_factory=dict)
    label_names: tuple[str, ...] | None = None
    trained: ModelConfig | None = None


class Understood(NamedTuple):
    """A model's tensors by official names, and what its file says of it.

    Args:
        contents: still without the hash of the file.
        question: to be answered before the model means anything; see `infer.Inferred`.
    """

    state: dict[str, Leaf]
    contents: Contents
    question: Question | None

    def answered(self, path: Path) -> Contents:
        """Return the contents, with the hash of the file.

        Raises:
            Question: the file fits two models, and nothing tells which one it is.
        """
        # Asked last: whoever has a damaged file should not have to answer first.
        if self.question is not None:
            raise self.question
        return replace(self.contents, source_sha256=checkpoint_file.sha256(path))


def describe(path: str | Path, **options: Unpack[Options]) -> Contents:
    """Return what `official.read` says of a checkpoint, for the same reasons refused, and make no tensor.

    Torch is imported only for what `checkpoint.headers` leaves to it: archives that are deflated, or of a torch before
    1.6, and tensors that are sparse, quantized, nested or of a class of their own.

    Raises:
        CheckpointError, Question, UsageError: as `official.read`.
    """
    path = Path(path)
    loaded = checkpoint_file.load(path, values=False)
    understood = understand(path, loaded, **options)
    held = understood.state
    for name in (each for theirs in names_of(held).values() for each in theirs if each in held):
        leaf = held[name]
        check_kind(str(path), name, leaf)
        if not (leaf.is_finite() if isinstance(leaf, Header) else bool(leaf.float().isfinite().all())):
            raise not_finite(str(path), name)
    return understood.answered(path)


def understand(path: Path, loaded: checkpoint_file.Loaded, **options: Unpack[Options]) -> Understood:
    """Return the ViM of a document and what the document says of it; see `official.read`."""
    where, given = str(path), dict[str, Any](options)
    ema, key, repo = given.pop("ema", False), given.pop("weights_key", None), given.pop("repo", None)
    given |= {name: _tuple(name, given.get(name)) for name in ("mean", "std")}
    asked = Asked(**given | {"image_size": ModelOptions.size(given.get("image_size"))})
    state, document, ignored = _state_dict(where, loaded, ema, key, asked.backbone)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    inferred = infer(where, shapes, Stored.of(document, path.name, repo), asked)
    notes = inferred.notes
    if other := sorted({dtype_of(tensor) for tensor in state.values()} - {"float32"}):
        notes += (f"{' and '.join(other)} weights are computed with in float32",)
    # A backbone has no head, and perhaps no class token: those are empty.
    parts = official_shapes(inferred.model, inferred.num_classes)
    state |= {name: state["norm_f.weight"].new_zeros(shape) for name, shape in parts.items() if not all(shape)}
    named = names_in(document, inferred.num_classes) if inferred.num_classes else None
    if named is not None:
        notes += (_names_note(named, inferred.num_classes),)
    contents = Contents(
        model=inferred.model,
        num_classes=inferred.num_classes,
        preprocessing=inferred.preprocessing,
        source_sha256="",
        notes=notes + ignored,
        by_name=inferred.by_name,
        label_names=None if named is None or len(named.names) != inferred.num_classes else named.names,
        trained=inferred.trained,
    )
    return Understood(state, contents, inferred.question)


def check_kind(where: str, name: str, leaf: Leaf) -> None:
    """Refuse a tensor that is not of floating-point numbers in memory."""
    if kind_of(leaf) not in _KINDS:
        raise CheckpointError(
            f"{where}: {name} is {kind_of(leaf)}, expected floating-point numbers",
            "save the float weights of the model",
        )


def not_finite(where: str, name: str) -> CheckpointError:
    """Return the error for a tensor that holds NaN or infinity."""
    return CheckpointError(
        f"{where}: {name} holds NaN or infinite values", "training diverged or the file is damaged: use another"
    )


def names_of(held: Mapping[str, Leaf]) -> dict[str, tuple[str, ...]]:
    """Return, for stm's name of each tensor, the official name, or the official names of the two that it joins.

    Two directions are stacked. The positions of patches and of several class tokens are one table, in the order of the
    sequence.

    Args:
        held: the model's tensors by either names.
    """
    depth = len({name.split(".")[1] for name in held if name.startswith("layers.")})
    names: dict[str, tuple[str, ...]] = {
        name: (name,) for name in ("cls_token", "pos_embed", "norm_f.weight", "head.weight", "head.bias")
    }
    if held["cls_token"].shape[1] > 1:
        names["pos_embed"] = ("pos_embed", "pos_embed_cls")
        names |= {name: (name,) for name in ("neck.weight", "norm_neck.weight") if name in held}
    names |= {f"patch_embed.{kind}": (f"patch_embed.proj.{kind}",) for kind in ("weight", "bias")}
    for block in (f"layers.{i}" for i in range(depth)):
        names |= {
            name: (other,)
            for kind in ("weight", "bias")
            for name, other in [(f"{block}.mixer.scan_norm.{kind}", f"{block}.mixer.layernorm.{kind}")]
            if name in held or other in held
        }
        names |= {
            f"{block}.{name}": (f"{block}.{name}",)
            for name in ("norm.weight", "mixer.in_proj.weight", "mixer.out_proj.weight")
        }
        for name in DIRECTED:
            ours = name.replace("{}", "").replace(".", "_")
            names[f"{block}.mixer.{ours}"] = (f"{block}.mixer.{name.format('')}", f"{block}.mixer.{name.format('_b')}")
    return names


def _names_note(named: Named, classes: int) -> str:
    """Say that the file names its classes, or why its names are not taken."""
    if len(named.names) == classes:
        return f"the classes are named by the file's own {named.key}: {listed(named.names)}"
    return f"the file's own {named.key} does not fit, with {len(named.names)} names for {classes} classes: left out"


def _tuple(name: str, value: Any) -> tuple[float, ...] | None:
    """Return one number or several as a tuple."""
    if value is None:
        return None
    several = value if isinstance(value, list | tuple) else (value,)
    if not several or not all(type(number) in (int, float) for number in several):  # `type`, because True is an int
        raise UsageError(f"{name} is {value!r}, expected a number, or one per channel")
    return tuple(map(float, several))


def _state_dict(
    where: str, loaded: checkpoint_file.Loaded, ema: bool, key: str | None, backbone: bool
) -> tuple[dict[str, Leaf], Any, tuple[str, ...]]:
    """Return a checkpoint's weights, the settings beside them (None: there are none), and notes on where they were."""
    document = loaded.document
    if vims := find(where, document):
        one, notes = choose(where, vims, document, ema=ema, key=key)
        if one.question is not None and not backbone:
            raise CheckpointError(f"{where} holds {one.question}", "save the model with the head that classifies alone")
        nested = next((name for name, value in one.state.items() if value.is_nested), None)
        if nested is not None:
            raise CheckpointError(f"{where}: {listed([repr(nested)])} is a nested tensor, expected a tensor")
        if loaded.inert:
            notes += (f"left out, as neither tensors nor plain settings: values of {listed(loaded.inert)}",)
        state = dict(one.state)
        if backbone:
            state, remarks = trunk_of(one)
            notes = (*(note for note in notes if note not in one.notes), *remarks)  # without those about its head
        return state, settings(document, one.holder), notes
    # No ViM at all. The largest state dict tells best what the file is instead.
    if other := largest(where, document):
        return dict(other), None, ()
    raise loaded.unsafe or _no_state(where, document)


def _no_state(where: str, document: Any) -> CheckpointError:
    """Return the error for a document that holds no state dict."""
    if not isinstance(document, dict):
        return CheckpointError(
            f"{where} holds a {_type(document)}, expected a state dict, or a dict with one under 'model'"
        )
    key = next((key for key in _STATES if isinstance(document.get(key), dict)), None)
    state = document if key is None else document[key]
    for name, value in state.items():
        if not isinstance(name, str) or not is_tensor(value) or value.is_nested:
            kind = "nested tensor" if is_tensor(value) and value.is_nested else _type(value)
            what = (
                f"is a {kind}, expected a tensor" if isinstance(name, str) else "is the name of a tensor, expected text"
            )
            return CheckpointError(f"{where}: {listed([repr(name)])} {what}", f"it holds {listed(map(repr, state))}")
    if state:
        return CheckpointError(f"{where} is not a ViM: it holds {listed(map(repr, state))}")
    return CheckpointError(f"{where} holds no tensors" + (f" under {key!r}" if key else ""))


def _type(value: Any) -> str:
    return "Tensor" if isinstance(value, Header) else type(value).__name__
