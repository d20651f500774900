"""Find out what loading a pickle would make, without loading it: the names that it wants and the memory that it claims.

A few bytes of a pickle can ask for any amount of memory: `bytearray(2_000_000_000)`, a tensor of 10^12 elements that
all share one number, a path that holds itself twice, and that again twice. So a `Reader` follows the opcodes first,
with stand-ins for the objects that they would make. It adds up what they claim, and compares that with the size of the
file. Nothing is built here, and nothing is run.
"""

import pickletools
import re
from _compat_pickle import IMPORT_MAPPING
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

# Honest files claim much less than these limits allow. A file that is made to exhaust memory claims thousands of times
# as much, so the exact limits do not matter.
_VIEWS = 8  # elements of all tensors for each byte of the file: 24 equal blocks may share one storage
_MADE = 4  # what everything else costs for each byte of the file
_SLACK = 1 << 20  # the same for a file of a few bytes
_CALL, _CONTAINER = 64, 32  # bytes that the smallest result of a call, and the smallest container, take
_DEEPEST = 200  # tuples in tuples: their hash and their comparison recurse in C

_SIZE_AT = {  # where a function of torch._utils takes the size of the tensor that it makes
    "_rebuild_tensor": 2,
    "_rebuild_tensor_v2": 2,
    "_rebuild_tensor_v3": 2,
    "_rebuild_qtensor": 2,
    "_rebuild_wrapper_subclass": 2,
    "_rebuild_meta_tensor_no_storage": 1,
}
_CODECS = ("latin1", "ascii", "utf8")  # as pickles name them, without - and _
_CLASS = re.compile(r"torch\.(\w+\.){0,2}\w*(Tensor|Storage|Parameter)")  # what takes sizes, or a tensor's state
_DTYPE = re.compile(r"[<>=|]?[a-zA-Z?]\d{0,2}")


class Claim(Exception):
    """The pickle asks for more than its file can hold. The message says what it asks for."""


@dataclass(slots=True)
class _Made:
    """A stand-in for an object: its type, its whole size, the depth of its tuples, and the parts of a sequence."""

    what: str
    size: int = 1
    depth: int = 0
    parts: Sequence[Any] = ()


_MARK = _Made("mark")


class Reader:
    """Follow the pickles of one file, and add up what they claim.

    Args:
        held: the bytes of the unpacked file.
    """

    def __init__(self, held: int) -> None:
        self.names: list[str] = []  # every name of a module's member, in order
        self.opcodes: set[str] = set()
        self.held = held
        self._storages: dict[Any, int] = {}
        self._stored = self._viewed = self._cost = 0

    def read(self, pickle: IO[bytes]) -> None:
        """Follow one pickle up to its end.

        Raises:
            Claim: the pickle asks for more than the file can hold.
            Exception: of any kind, if the pickle is damaged.
        """
        # The unpickler is a machine with a stack and a memo, and so is this reader. An opcode that neither stores to
        # the memo nor reads from it takes its arguments from the stack and leaves its result there.
        stack: list[Any] = []
        memo: dict[int, Any] = {}
        for opcode, arg, _ in pickletools.genops(pickle):
            name = opcode.name
            self.opcodes.add(name)
            if name == "MEMOIZE" or "PUT" in name:
                memo[int(len(memo) if arg is None else arg)] = stack[-1]
            elif "GET" in name:
                stack.append(memo[int(arg or 0)])
            elif name == "MARK":
                stack.append(_MARK)
            elif name == "DUP":
                stack.append(stack[-1])
            else:
                stack.extend(self._made(name, arg, _taken(stack, opcode)) if opcode.stack_after else ())

    def _made(self, name: str, arg: Any, taken: list[Any]) -> tuple[Any, ...]:
        """Return what an opcode leaves on the stack in place of what it took."""
        match name:
            case "GLOBAL" | "STACK_GLOBAL":
                return (self._named(str(arg).replace(" ", ".") if arg is not None else ".".join(map(str, taken))),)
            case "INST":
                return (self._call(self._named(str(arg).replace(" ", ".")), taken),)
            case "OBJ":
                return (self._call(taken[0], taken[1:]),)
            case "REDUCE" | "NEWOBJ" | "NEWOBJ_EX":
                return (self._call(taken[0], _arguments(taken[1])),)
            case "BUILD":
                return (self._build(*taken),)
            case "PERSID" | "BINPERSID":
                return (self._storage(_arguments(taken[0])) if taken else _Made("storage"),)
            # These change the container in place: its size grows for everybody who holds it.
            case "APPEND" | "APPENDS" | "SETITEM" | "SETITEMS" | "ADDITEMS":
                taken[0].size += len(taken) - 1
                if isinstance(taken[0].parts, list):
                    taken[0].parts.extend(taken[1:])
                return (taken[0],)
            case "EMPTY_TUPLE" | "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                return (self._tuple(taken),)
            case "EMPTY_LIST" | "LIST" | "EMPTY_DICT" | "DICT" | "EMPTY_SET" | "FROZENSET":
                self._pay(_CONTAINER)
                return (_Made(name, len(taken) + 1, parts=list(taken) if "LIST" in name else ()),)
            case _:
                return (arg,)

    def _named(self, name: str) -> _Made:
        self.names.append(name)
        module, _, member = name.partition(".")
        return _Made(f"{IMPORT_MAPPING.get(module, module)}.{member}")

    def _tuple(self, parts: list[Any]) -> _Made:
        # Two bytes make a tuple of a tuple twice, and so double its size. It costs nothing while its parts are shared,
        # but a function that takes it, such as a path, copies all of them: hence each use of a part counts.
        made = _Made("tuple", 1 + sum(map(_size, parts)), 1 + max(map(_depth, parts), default=0), tuple(parts))
        if made.depth > _DEEPEST:
            raise Claim(f"tuples that are nested more than {_DEEPEST} deep")
        if made.size > self.held * _MADE + _SLACK:
            raise Claim(f"a tuple of {made.size:,} parts")
        return made

    def _call(self, function: Any, args: Sequence[Any]) -> _Made:
        name = function.what if isinstance(function, _Made) else "?"
        if name == "torch._tensor._rebuild_from_type_v2":  # it calls the function that is its first argument
            return self._call(args[0], _arguments(args[2]))
        size = 1 + sum(map(_size, args))
        module, _, member = name.rpartition(".")
        if module == "torch._utils":
            size = self._tensor(member, args)
            self._pay(_CALL)
        elif name in ("torch.Size", "torch.device", "torch.serialization._get_layout"):
            self._pay(_CALL + size)  # they hold no more than their arguments
        else:
            _check_arguments(name, args)
            self._pay(_CALL + size)
        return _Made(name, size, parts=args if name == "torch.Size" else ())

    def _tensor(self, member: str, args: Sequence[Any]) -> int:
        """Return the number of elements of the tensor that a function of torch._utils makes."""
        if member in _SIZE_AT:
            return self._view(_elements(args[_SIZE_AT[member]]), "a tensor")
        if (
            member == "_rebuild_sparse_tensor"
        ):  # (indices, values, size, whether coalesced) or (indices, indices, values, size)
            return max(
                self._view(_elements(part), "a sparse tensor") for part in _arguments(args[1]) if _is_shape(part)
            )
        if member.startswith("_rebuild_device_tensor"):
            return self._view(_size(args[0]), "a copy of a tensor")
        return _size(args[0])

    def _build(self, made: Any, state: Any) -> Any:
        if (
            isinstance(made, _Made)
            and (_CLASS.fullmatch(made.what) or _is_made(made, "torch._utils."))
            and not _is_dict(state)
        ):
            made.size = self._view(_elements(_arguments(state)[2]), "a tensor")  # set_(storage, offset, size, stride)
        self._pay(_size(state))  # its items are copied
        return made

    def _storage(self, identity: Sequence[Any]) -> _Made:
        key, count = identity[2], identity[4]
        if not isinstance(count, int):
            raise Claim("a storage without a size")
        # Tensors may share a storage, which counts once. A key that cannot be one is that of a storage of its own.
        key = key if isinstance(key, str | int) else object()
        before = self._storages.get(key, 0)
        self._storages[key] = max(before, count)
        self._stored += self._storages[key] - before
        if self._stored > self.held:
            raise Claim(f"storages of {self._stored:,} numbers")
        self._pay(_CALL)
        return _Made("storage")

    def _view(self, count: int, what: str) -> int:
        self._viewed += count
        if self._viewed > max(self.held, 1) * _VIEWS:
            raise Claim(
                f"{what} of {count:,} elements"
                if count > self.held
                else f"tensors of {self._viewed:,} elements together"
            )
        return count

    def _pay(self, cost: int, what: str = "") -> None:
        self._cost += cost
        if self._cost > self.held * _MADE + _SLACK:
            raise Claim(what or f"objects of {self._cost:,} bytes")


def _taken(stack: list[Any], opcode: pickletools.OpcodeInfo) -> list[Any]:
    """Take an opcode's arguments from the stack, in order; if it takes a mark, all above the mark."""
    before = opcode.stack_before
    if pickletools.markobject in before:
        above: list[Any] = []
        while (top := stack.pop()) is not _MARK:
            above.append(top)
        under = before.index(pickletools.markobject)
        return [*(stack.pop() for _ in range(under)), *reversed(above)]
    taken = stack[len(stack) - len(before) :]
    if len(taken) < len(before) or (opcode.name != "POP" and any(each is _MARK for each in taken)):
        raise ValueError(f"nothing on the stack that {opcode.name} takes")
    del stack[len(stack) - len(before) :]
    return taken


def _size(value: Any) -> int:
    return value.size if isinstance(value, _Made) else len(value) if isinstance(value, str | bytes | bytearray) else 1


def _depth(value: Any) -> int:
    return value.depth if isinstance(value, _Made) else 0


def _is_shape(value: Any) -> bool:
    return isinstance(value, _Made) and value.what in ("tuple", "torch.Size", "LIST", "EMPTY_LIST")


def _is_dict(value: Any) -> bool:
    return isinstance(value, _Made) and value.what in ("DICT", "EMPTY_DICT", "collections.OrderedDict")


def _arguments(value: Any) -> Sequence[Any]:
    """Return the items of a tuple of arguments. No pickler writes arguments as anything else."""
    if not (isinstance(value, _Made) and value.what == "tuple"):
        raise ValueError("arguments that are no tuple")
    return value.parts


def _elements(shape: Any) -> int:
    """Return the number of elements of a tensor of this shape, with 1 for an empty side: 0 would hide a huge one."""
    if not _is_shape(shape):
        raise Claim("a tensor whose shape is no tuple")
    count = 1
    for size in _arguments(shape.parts[0]) if shape.what == "torch.Size" and shape.parts else shape.parts:
        if not isinstance(size, int):
            raise Claim("a tensor whose shape is not of numbers")
        count *= max(abs(size), 1)
        if count > 1 << 62:
            break
    return count


def _check_arguments(name: str, args: Sequence[Any]) -> None:
    """Refuse arguments that no pickler writes and that let a function make more than it takes.

    Such arguments are a size, for example of a bytearray, and a codec that expands its input.
    """
    first = args[0] if args else b""
    if name == "builtins.bytearray" and not (
        isinstance(first, str | bytes | bytearray) or _is_made(first, "_codecs.encode")
    ):
        raise Claim(
            f"a bytearray of {first:,} bytes" if isinstance(first, int) else "a bytearray of something else than bytes"
        )
    if name == "_codecs.encode" and (len(args) < 2 or re.sub("[-_]", "", str(args[1]).lower()) not in _CODECS):
        raise Claim("bytes in an encoding that no pickle has")
    if name == "numpy.dtype" and not (isinstance(first, str) and _DTYPE.fullmatch(first)):
        raise Claim("a numpy.dtype that is not one of plain numbers")
    number = args[1] if len(args) == 2 else None
    if re.fullmatch(r"numpy\..*\.scalar", name) and not (
        isinstance(number, str | bytes) or _is_made(number, "_codecs.encode")
    ):
        raise Claim("a number of numpy without its bytes")
    if _CLASS.fullmatch(name) and not all(isinstance(arg, bool | None) or _is_made(arg, "torch.") for arg in args):
        raise Claim(f"a {name} of a size of its own")


def _is_made(value: Any, by: str) -> bool:
    return isinstance(value, _Made) and value.what.startswith(by)
