"""Find every ViM in what a checkpoint file holds, whatever wraps it, and choose one.

One rule stands in place of a list of containers and prefixes: a ViM is where `P + layers.0.mixer.A_log` is, for any P.
P is a path through dicts and lists, a prefix of the names in a state dict, or both.
"""

import argparse
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from stm.checkpoint.heads import Head, find_head
from stm.checkpoint.infer import head_inputs, official_names
from stm.checkpoint.leaves import Leaf, is_tensor
from stm.checkpoint.stored import READ
from stm.errors import CheckpointError, listed

_DEEPEST, _MOST = 12, 500_000  # containers in containers, and values: honest files have 5 and some 10,000
_MANY = 32  # ViMs in one file
_SIGN = re.compile(r"(?:(.*)\.)?((?:layers|blocks)\.0\.mixer\.A_log)", re.DOTALL)
# Ports that only renamed the tensors (the port to transformers): from a name's pattern to the official name.
_RENAMES = ((r"blocks\.(\d+)\.(.+)", r"layers.\1.\2"), (r"norm\.weight", "norm_f.weight"))
_AVERAGED = re.compile(r"(.*_)?(ema|avg|averaged?|swa|shadow)(_?(model|params|weights|state|net|network|dict))*")
_MEASURES = "acc|accuracy|metrics?|loss|auroc|auc|f1|confmat|precision|recall"
# What trainers keep among a model's tensors and no model computes with. The rest that is unknown is refused by name.
_DROPPED = re.compile(
    r"(.*\.)?(total_ops|total_params|n_averaged|num_updates|ema_decay)"
    rf"|(\w*optim(izer)?s?|(\w+_)?(criterion|loss_fn|loss_func|{_MEASURES})|(train|val|valid|test)_({_MEASURES})\w*"
    r"|mixup|cutmix|aug|augment\w*|normali[sz]e\w*|transforms?|\w*logger|scaler|\w*scheduler)(\..*)?",
    re.DOTALL,
)
# The layers that read a backbone's features, and the head with what stands before it.
_READERS = re.compile(
    r"((head|neck|norm_neck|decode_head|auxiliary_head)|(fpn|simfp_|outnorm_?|norm)\d+)\..*", re.DOTALL
)
_USUAL = (
    ".",
    *(  # where most trainers have the weights: no word about those
        ".".join(parts)
        for outer in ((), ("model",), ("state_dict",))
        for inner in ((), ("module",), ("_orig_mod",), ("module", "_orig_mod"), ("_orig_mod", "module"))
        if (parts := (*outer, *inner))
    ),
)
Path = tuple[str, ...]


class _Leaf(NamedTuple):
    holder: Path
    key: str
    value: Leaf

    @property
    def name(self) -> str:
        return ".".join((*self.holder, self.key))


@dataclass(frozen=True)
class StoredViM:
    """A ViM in a document.

    Args:
        key: the way to it, as messages and `--weights-key` name it: `model_ema.module`; "." is the document itself.
        state: its tensors by official names. What is unknown stays under its own name, and is refused later.
        holder: the path of the dict that holds it.
        notes: sentences about its head.
        head: the names of its head's tensors, as the file has them.
        dropped: names among its tensors that are the trainer's own, and are left out.
        averaged: whether its way says that it is an average of the training's steps.
        missing: official names that it lacks.
        question: in words, if its head is one of several layers.
        beside: names among its tensors that stand outside of its prefix.
    """

    key: str
    state: dict[str, Leaf]
    holder: Path
    notes: tuple[str, ...]
    head: tuple[str, ...]
    dropped: tuple[str, ...]
    averaged: bool
    missing: tuple[str, ...]
    question: str | None
    beside: frozenset[str] = frozenset()


def find(where: str, document: Any) -> list[StoredViM]:
    """Return every ViM in a document, complete or not, in the document's order.

    Raises:
        CheckpointError: the document is deeper or larger than any checkpoint, or a name in it has no single meaning.
    """
    leaves = list(_leaves(where, document))
    signs = [(leaf, match) for leaf in leaves if (match := _SIGN.fullmatch(leaf.name))]
    if len(signs) > _MANY:
        raise CheckpointError(f"{where} holds {len(signs)} ViMs, expected one", "save the state dict of one alone")
    prefixes = [f"{match[1]}." if match[1] else "" for _, match in signs]
    return [_read_vim(where, leaf, prefix, prefixes, leaves) for (leaf, _), prefix in zip(signs, prefixes, strict=True)]


def choose(
    where: str, vims: list[StoredViM], document: Any, *, ema: bool, key: str | None
) -> tuple[StoredViM, tuple[str, ...]]:
    """Return the ViM that was asked for, or else the only one, and sentences about where it came from.

    Raises:
        CheckpointError: there are several and nothing says which; or none is what was asked for.
    """
    whole = [each for each in vims if not each.missing] or vims
    keys = listed(repr(each.key) for each in whole)
    if key is not None:
        chosen = [each for each in vims if each.key == key]
        if not chosen:
            raise CheckpointError(
                f"{where} holds no ViM under {key!r}, but under {keys}", f"--weights-key {whole[0].key}"
            )
        asked = f"the weights are those under {listed([repr(key)])}, as asked"
        return chosen[0], (asked, *chosen[0].notes, *_left_out(document, chosen[0], vims))
    averaged, plain = [each for each in whole if each.averaged], [each for each in whole if not each.averaged]
    if ema and not averaged:
        held = listed(map(repr, document)) if isinstance(document, dict) else keys
        raise CheckpointError(f"{where} holds no averaged weights (model_ema), only {held}", "read it without --ema")
    pool = _different(averaged if ema or not plain else plain)
    if len(pool) > 1:
        names = listed(repr(each.key) for each in pool)
        raise CheckpointError(f"{where} holds {len(pool)} ViMs: {names}", f"name one: --weights-key {pool[0].key}")
    one, notes = pool[0], []
    if one.key not in _USUAL and not ema:
        notes.append(f"the weights are those under {listed([repr(one.key)])}")
    if plain and averaged and not ema:
        notes.append(f"the file also holds averaged weights ({listed([averaged[0].key])}): --ema takes those")
    return one, (*notes, *one.notes, *_left_out(document, one, vims))


def trunk_of(one: StoredViM) -> tuple[dict[str, Leaf], tuple[str, ...]]:
    """Return a ViM's tensors without those that read its features, and sentences about what was left out or made."""
    readers = {name for name in one.state if name in one.beside or _READERS.fullmatch(name)}
    state = {name: tensor for name, tensor in one.state.items() if name not in readers}
    left = [*(name for name in one.state if name in readers and not name.startswith("head.")), *one.head]
    notes = ["the backbone alone, as asked: it has no logits, and stm info, compress, eval, bench and export take it"]
    if left:
        notes.append(f"left out, as no part of the backbone: {listed(left)}")
    width = state.get("layers.0.norm.weight")
    if "norm_f.weight" not in state and width is not None:
        state["norm_f.weight"] = width.new_ones(width.shape)
        notes.append("the file has no final norm (norm_f): features() divides by the root mean square alone")
    return state, tuple(notes)


def _left_out(document: Any, one: StoredViM, vims: list[StoredViM]) -> tuple[str, ...]:
    """Return a sentence that lists what is not read: on the way to a ViM, and among its tensors; none if all is."""
    used = {id(tensor) for each in vims for tensor in each.state.values()}
    names, at = [], document
    for depth in range(len(one.holder) + 1):
        inside = one.holder[depth] if depth < len(one.holder) else None
        for name, value in _items(at):
            read = name == inside or name.lower() in READ or isinstance(value, str | bool | None)
            named = isinstance(at, dict | argparse.Namespace)  # what is in a list has no name
            if named and not read and used.isdisjoint(id(leaf.value) for leaf in _leaves(name, {name: value})):
                names.append(name)
        at = dict(_items(at)).get(inside) if inside is not None else None
    left = dict.fromkeys([*names, *one.dropped])
    return (f"left out, as the trainer's own: {listed(left)}",) if left else ()


def settings(document: Any, holder: Path) -> dict[str, Any] | None:
    """Return what stands beside the weights in each dict on the way to them, the nearest value of a name first.

    None if nothing but tensors does.
    """
    merged: dict[str, Any] = {}
    at = document
    for depth in range(len(holder) + 1):
        inside = holder[depth] if depth < len(holder) else None
        items = list(_items(at))
        dicts = [at] if isinstance(at, dict) else [value for key, value in items if key != inside]
        for each in dicts:
            if isinstance(each, dict):
                merged |= {
                    name: value
                    for name, value in each.items()
                    if isinstance(name, str) and name != inside and not is_tensor(value)
                }
        at = dict(items).get(inside) if inside is not None else None
    return merged or None


def largest(where: str, document: Any) -> dict[str, Leaf]:
    """Return the largest state dict in a document, to say what it is if it is no ViM; empty if there is none."""
    holders: dict[Path, dict[str, Leaf]] = {}
    for leaf in _leaves(where, document):
        if not leaf.value.is_nested:
            holders.setdefault(leaf.holder, {})[leaf.key] = leaf.value
    named = [tensors for tensors in holders.values() if any("." in name for name in tensors)]
    return max(named, key=len, default={})


def _items(container: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(container, dict):
        yield from ((str(key), value) for key, value in container.items() if isinstance(key, str | int))
    elif isinstance(container, list | tuple):
        yield from ((str(i), value) for i, value in enumerate(container))
    elif isinstance(container, argparse.Namespace):
        yield from ((key, value) for key, value in vars(container).items() if isinstance(key, str))


def _leaves(where: str, document: Any) -> Iterator[_Leaf]:
    """Yield the tensors of a document. A container that is in several places is followed in each, within bounds."""
    seen = 0
    waiting: list[tuple[Path, Any]] = [((), document)]
    while waiting:
        holder, container = waiting.pop()
        inner = []
        for key, value in _items(container):
            seen += 1
            if seen > _MOST:
                raise CheckpointError(
                    f"{where} holds more than {_MOST:,} values, expected a checkpoint", "save the state dict alone"
                )
            if is_tensor(value):
                yield _Leaf(holder, key, value)
            elif isinstance(value, dict | list | tuple | argparse.Namespace) and len(holder) < _DEEPEST:
                inner.append(((*holder, key), value))
        waiting += reversed(inner)


def _read_vim(where: str, sign: _Leaf, prefix: str, prefixes: list[str], leaves: list[_Leaf]) -> StoredViM:
    # Modules within modules, a dict for each, are read like one dict of dotted names.
    nested = len(".".join((*sign.holder, ""))) > len(prefix) and sign.holder != ()
    holder = tuple(prefix.removesuffix(".").split(".")) if nested and prefix else () if nested else sign.holder
    scope = ".".join((*holder, "")) if holder else ""
    others = [each for each in prefixes if each != prefix and each.startswith(prefix)]
    state, beside = {}, {}
    for leaf in leaves:
        if leaf.holder[: len(holder)] != holder or (not nested and leaf.holder != holder):
            continue
        name = leaf.name
        if any(name.startswith(each) for each in others):
            continue
        if name.startswith(prefix):
            state[name.removeprefix(prefix)] = leaf.value
        elif not any(each != scope and name.startswith(each) for each in prefixes):
            beside[name.removeprefix(scope)] = leaf.value
    renamed = sign.name.endswith("blocks.0.mixer.A_log")
    state = {_official(name) if renamed else name: value for name, value in state.items()}
    dropped = sorted(name for name in state | beside if _is_dropped(name))
    for name in dropped:
        state.pop(name, None)
        beside.pop(name, None)
    expected = official_names(state)
    head = _give_head(state, beside, _siblings(leaves, holder, prefixes), expected)
    question, notes, names = (None, head.notes, head.names) if isinstance(head, Head) else (head, (), ())
    # unknown, and refused by a name that is no tensor's of the ViM
    beside = {name if name not in expected else f"beside it, {name}": value for name, value in beside.items()}
    state |= beside
    key = prefix.removesuffix(".") or "."
    missing = tuple(name for name in expected if name not in state)
    averaged = any(map(_is_average, key.split(".")))
    return StoredViM(key, state, holder, notes, names, tuple(dropped), averaged, missing, question, frozenset(beside))


def _give_head(
    state: dict[str, Leaf], beside: dict[str, Leaf], siblings: dict[str, Leaf], expected: Collection[str]
) -> Head | str | None:
    """Move the head to its official names in `state`, and return what `find_head` does."""
    width = head_inputs({name: tuple(tensor.shape) for name, tensor in state.items() if not tensor.is_nested})
    if not width:
        return None
    trunk = {name for name in expected if not name.startswith("head.")}
    head = find_head(width, {k: v for k, v in state.items() if k not in trunk}, beside, siblings)
    if not isinstance(head, Head):
        return head
    source = next(each for each in (state, beside, siblings) if head.names[0] in each)
    for name in head.names:
        source.pop(name)
    state["head.weight"], state["head.bias"] = head.weight, head.bias
    return head


def _is_dropped(name: str) -> bool:
    return _DROPPED.fullmatch(name) is not None or ("." in name and _is_average(name.split(".")[0]))


def _official(name: str) -> str:
    for pattern, official in _RENAMES:
        if match := re.fullmatch(pattern, name):
            return match.expand(official)
    return name


def _is_average(segment: str) -> bool:
    return _AVERAGED.fullmatch(segment.lower()) is not None


def _siblings(leaves: list[_Leaf], holder: Path, prefixes: list[str]) -> dict[str, Leaf]:
    """Return the tensors of the dicts that stand beside the one of the weights: a trunk's head may have its own."""
    tensors = {}
    for leaf in leaves:
        beside = len(leaf.holder) == len(holder) > 0 and leaf.holder[:-1] == holder[:-1] and leaf.holder != holder
        name = ".".join((*leaf.holder[-1:], leaf.key))
        if beside and not _is_dropped(name) and not any(each and leaf.name.startswith(each) for each in prefixes):
            tensors[name] = leaf.value
    return tensors


def _different(vims: list[StoredViM]) -> list[StoredViM]:
    """Return the ViMs without those that are another one's own tensors under a second name."""
    kept: dict[tuple[Any, ...], StoredViM] = {}
    for each in vims:
        kept.setdefault(tuple(sorted((name, id(value)) for name, value in each.state.items())), each)
    return list(kept.values())
