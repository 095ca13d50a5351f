"""The pickles in files of torch, read without an unpickler.

A pickle is disassembled by `pickletools`, and the few instructions that describe tensors are interpreted. All others,
and all functions and classes but those that rebuild tensors, are refused by name.
"""

import io
import pickletools
from typing import Any, NamedTuple

import numpy as np

from imagen_jax.text import model_files

# Storage class -> (name in safetensors, bytes of an element)
DTYPES = {
    "torch.DoubleStorage": ("F64", 8),
    "torch.FloatStorage": ("F32", 4),
    "torch.HalfStorage": ("F16", 2),
    "torch.BFloat16Storage": ("BF16", 2),
    "torch.LongStorage": ("I64", 8),
    "torch.IntStorage": ("I32", 4),
    "torch.ShortStorage": ("I16", 2),
    "torch.CharStorage": ("I8", 1),
    "torch.ByteStorage": ("U8", 1),
    "torch.BoolStorage": ("BOOL", 1),
}
_DICTIONARY = "collections.OrderedDict"
_REBUILD, _PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
_ALLOWED = {*DTYPES, _DICTIONARY, _REBUILD, _PARAMETER}


class Unreadable(ValueError):
    """The reason why a file does not hold tensors alone, for the message about the file."""


class _Global(NamedTuple):
    """A function or class that a pickle names; its name is compared and never looked up."""

    name: str


class Storage(NamedTuple):
    """The bytes of one or more tensors; `key` in the file, `dtype` as safetensors names it."""

    key: str
    dtype: str
    itemsize: int  # bytes of an element
    size: int  # elements


class View(NamedTuple):
    """A tensor as a part of a storage: offset, shape and strides in elements."""

    storage: Storage
    offset: int  # elements
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=object))


def as_views(found: Any) -> dict[str, View]:
    """Return what a pickle holds if it is a dictionary of tensors; raise Unreadable otherwise."""
    if not isinstance(found, dict) or not found:
        raise Unreadable(f"it must hold a dictionary of tensors; got {type(found).__name__}")
    for name, view in found.items():
        if not isinstance(name, str) or not isinstance(view, View):
            raise Unreadable(f"it must hold tensors alone; got {type(view).__name__} under {name!r:.80}")
    return found


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "BINFLOAT"}
# Instructions that gather values into a tuple, list or dictionary: how many; None: those since the last mark.
_GATHERED = {
    **{"TUPLE": None, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3},
    **{"APPENDS": None, "APPEND": 1, "SETITEMS": None, "SETITEM": 2},
}


def interpret(stream: io.BytesIO) -> Any:
    """Return the value of the next pickle of a stream, with a `View` for each tensor."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop(kind: type) -> Any:
        value = stack.pop()
        if not isinstance(value, kind):
            raise Unreadable(f"its pickle must hold a {kind.__name__} there; got {type(value).__name__}, as damaged")
        return value

    def gather(num: int | None) -> list[Any]:
        start = marks.pop() if num is None else len(stack) - num
        if not 0 <= start <= len(stack):
            raise IndexError("too few values")
        found = stack[start:]
        del stack[start:]
        return found

    try:
        for opcode, argument, _ in pickletools.genops(stream):
            name = opcode.name
            if name in ("PROTO", "FRAME"):
                continue
            if name == "STOP":
                return stack.pop()
            if name in _VALUES:
                stack.append(argument)
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name in _EMPTY:
                stack.append(_EMPTY[name]())
            elif name == "MARK":
                marks.append(len(stack))
            elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
                memo[len(memo) if argument is None else argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name in ("GLOBAL", "STACK_GLOBAL"):
                words = argument.split(" ") if name == "GLOBAL" else [pop(str), pop(str)][::-1]
                stack.append(_allowed(".".join(words)))
            elif name in _GATHERED:
                values = gather(_GATHERED[name])
                if name.startswith("TUPLE"):
                    stack.append(tuple(values))
                elif name.startswith("APPEND"):
                    stack.append(pop(list))
                    stack[-1].extend(values)
                else:
                    stack.append(pop(dict))
                    if not all(isinstance(key, str) for key in values[::2]):
                        raise Unreadable("its pickle has keys that are no text")
                    stack[-1].update(zip(values[::2], values[1::2], strict=True))
            elif name == "BINPERSID":
                stack.append(_storage(stack.pop()))
            elif name == "REDUCE":
                arguments, function = pop(tuple), pop(_Global)
                stack.append(_called(function.name, arguments))
            elif name == "BUILD":  # _metadata of a state dictionary: versions of modules
                stack.pop()
                stack.append(pop(dict))
            else:
                raise Unreadable(f"its pickle must describe tensors alone; got the instruction {name}")
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise Unreadable(f"its pickle is damaged: {model_files.first_line(error)}") from error
    raise Unreadable("its pickle has no end")


def _allowed(name: str) -> _Global:
    if name not in _ALLOWED:
        raise Unreadable(f"its pickle must name tensors alone; got {name!r:.200}, which it would run")
    return _Global(name)


def _storage(value: Any) -> Storage:
    """Return the storage of ('storage', class, key, device, number of elements); before torch 1.6 also None."""
    kind, cls, key, _, size, *view = value
    if kind != "storage" or not isinstance(cls, _Global) or cls.name not in DTYPES or any(view):
        raise Unreadable("its pickle names a storage of an unknown kind")
    if not isinstance(key, str) or type(size) is not int or not 0 <= size < 2**48:
        raise Unreadable("its pickle names a storage of an unknown size")
    return Storage(key, *DTYPES[cls.name], size)


def _called(function: str, arguments: tuple) -> Any:
    """Return what the functions that rebuild tensors return, as plain values."""
    if function == _DICTIONARY:
        if arguments and arguments != ([],):
            raise Unreadable("its pickle makes a dictionary of values")
        return {}
    if function == _PARAMETER:
        view, *_ = arguments
    elif function == _REBUILD:
        view = View(*arguments[:4])
    else:
        raise Unreadable(f"its pickle must name tensors alone; got a call of {function}")
    if not isinstance(view, View) or not isinstance(view.storage, Storage):
        raise Unreadable("its pickle makes a tensor of other values than a storage")
    numbers = (view.offset, *view.shape, *view.strides)
    is_whole = isinstance(view.shape, tuple) and isinstance(view.strides, tuple)
    if not is_whole or len(view.shape) != len(view.strides) or len(view.shape) > 16:
        raise Unreadable("its pickle names a tensor without a shape")
    if not all(type(number) is int and 0 <= number < 2**48 for number in numbers):
        raise Unreadable("its pickle names a tensor of an unknown size")
    last = view.offset + sum(
        (size - 1) * stride for size, stride in zip(view.shape, view.strides, strict=True)
    )
    # The first of these also refuses a single number that is repeated without end.
    if view.size > view.storage.size or (view.size and last >= view.storage.size):
        raise Unreadable("its pickle names a tensor beyond its storage")
    return view
