"""Weights as torch.save writes them (pytorch_model.bin), read without torch, and written as safetensors.

Such a file holds its tensors' bytes beside a pickle that says how they make up a dictionary. No unpickler runs here:
the pickle is disassembled by `pickletools`, and the few instructions that describe tensors are interpreted. Whatever
else a pickle can ask for, above all any function or class but those that rebuild tensors, is refused by name.
"""

import contextlib
import io
import json
import os
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from imagen_jax.storage import files
from imagen_jax.text import model_files

# Of a model with 15,000 tensors; the pickle of a real one has some hundred kB.
_MAX_PICKLE_BYTES = 4 << 20
_CHUNK = 16 << 20
# Storage class -> (name in safetensors, bytes of an element)
_DTYPES = {
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
_ALLOWED = {*_DTYPES, _DICTIONARY, _REBUILD, _PARAMETER}
# Of the format before torch 1.6.
_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001


class _Global(NamedTuple):
    """A function or class that a pickle names. Never looked up, only compared."""

    name: str


class _Storage(NamedTuple):
    key: str
    dtype: str
    itemsize: int
    size: int  # elements


class TorchTensor(NamedTuple):
    """A tensor in a file of torch.

    Attributes:
      dtype: as safetensors names it.
      shape: of the tensor.
      copy: writes its bytes, in C order, to an open file.
    """

    dtype: str
    shape: tuple[int, ...]
    copy: Callable[[BinaryIO], None]


class _View(NamedTuple):
    storage: _Storage
    offset: int  # elements
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=object))


def tensors(path: Path) -> dict[str, TorchTensor]:
    """The tensors of a file, by name. Reads what describes them; their bytes are read by `TorchTensor.copy`.

    Raises:
      ValueError: the file is damaged, or its pickle does anything but describe a dictionary of tensors.
    """
    with _damage_named(path):
        return _zip_tensors(path) if zipfile.is_zipfile(path) else _legacy_tensors(path)


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    # RuntimeError and NotImplementedError: an encrypted archive, or one of an unknown kind.
    except (ValueError, zipfile.BadZipFile, struct.error, EOFError, RuntimeError) as error:
        reason = model_files.first_line(error)
        raise ValueError(f"{path} cannot be converted: {reason}; get it again, or another model.") from error


def convert(directory: Path, output: Path, is_needed: Callable[[str], bool] = lambda name: True) -> Path:
    """Writes model.safetensors from the pytorch_model.bin, or its shards, of a directory; tensor by tensor.

    Args:
      directory: of the model.
      output: where model.safetensors is written; it must exist.
      is_needed: of a tensor's name; others are left out.

    Returns:
      The file that was written.

    Raises:
      ValueError: there is nothing to convert, the file is there already, room is lacking, or as `tensors` does.
    """
    target = output / "model.safetensors"
    if target.exists() or (output / "model.safetensors.index.json").exists():
        raise ValueError(
            f"{output} must not have safetensors yet; got {target.name}: there is nothing to convert."
        )
    index, single = directory / "pytorch_model.bin.index.json", directory / "pytorch_model.bin"
    if not index.is_file() and not single.is_file():
        raise ValueError(
            f"a directory to convert must hold pytorch_model.bin; got {directory}, which has none."
        )
    found: dict[str, tuple[Path, TorchTensor]] = {}
    for path in [single] if single.is_file() else model_files.shards(index):
        for name, tensor in tensors(path).items():
            if name in found:
                raise ValueError(
                    f"{path} holds the tensor {name}, which another shard has too; get them again."
                )
            if is_needed(name):
                found[name] = path, tensor
    if not found:
        raise ValueError(f"{directory} holds no tensor that its config.json asks for; get a complete copy.")
    header = _header({name: tensor for name, (_, tensor) in found.items()})
    size = len(header) + sum(_nbytes(tensor) for _, tensor in found.values())
    stat = os.statvfs(output)
    if stat.f_bavail * stat.f_frsize < size:
        raise ValueError(
            f"{output} must have room for {size} bytes; got {stat.f_bavail * stat.f_frsize}: make room."
        )
    with files.replacing(target) as file:
        file.write(header)
        for name, (path, tensor) in found.items():
            start = file.tell()
            with _damage_named(path):
                tensor.copy(file)
                if file.tell() - start != _nbytes(tensor):
                    raise ValueError(f"the bytes of {name} end early")
    return target


def _nbytes(tensor: TorchTensor) -> int:
    itemsize = dict(_DTYPES.values())[tensor.dtype]
    return itemsize * int(np.prod(tensor.shape, dtype=object))


def _header(found: dict[str, TorchTensor]) -> bytes:
    """The header of a safetensors file: its length, then JSON."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in found.items():
        start, end = end, end + _nbytes(tensor)
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded


# --- formats ------------------------------------------------------------------------------------


def _zip_tensors(path: Path) -> dict[str, TorchTensor]:
    """Of torch 1.6 and later: an archive of data.pkl and data/KEY for each storage."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"it must hold one data.pkl; got {len(pickles)}")
        root = pickles[0].removesuffix("data.pkl")
        order = members.get(f"{root}byteorder")
        if order is not None and (order.file_size > 16 or archive.read(order) != b"little"):
            raise ValueError("its numbers must be little-endian")
        if members[pickles[0]].file_size > _MAX_PICKLE_BYTES:
            raise ValueError(f"its data.pkl must have at most {_MAX_PICKLE_BYTES} bytes")
        views = _views(archive.read(pickles[0]))
    for name, view in views.items():
        info, storage = members.get(f"{root}data/{view.storage.key}"), view.storage
        if info is None:
            raise ValueError(f"the bytes of {name} are missing")
        # What torch writes is not compressed, so nothing can unfold to more than the file.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != storage.size * storage.itemsize:
            raise ValueError(f"the bytes of {name} must be {storage.size * storage.itemsize}, uncompressed")

    def opened(key: str) -> Callable[[], Any]:
        return lambda: _member(path, f"{root}data/{key}")

    return {name: _tensor(view, opened(view.storage.key)) for name, view in views.items()}


class _member:
    """One member of an archive, open for reading; its checksum is verified when it is read to its end."""

    def __init__(self, path: Path, name: str):
        self._archive = zipfile.ZipFile(path)
        self._file = self._archive.open(name)

    def __enter__(self) -> BinaryIO:
        return self._file

    def __exit__(self, *error: Any) -> None:
        self._file.close()
        self._archive.close()


def _legacy_tensors(path: Path) -> dict[str, TorchTensor]:
    """Of torch before 1.6: five pickles, then each storage behind its size."""
    with path.open("rb") as file:
        head = file.read(_MAX_PICKLE_BYTES)
        stream = io.BytesIO(head)
        if _interpret(stream) != _LEGACY_MAGIC or _interpret(stream) != _LEGACY_VERSION:
            raise ValueError("it is no file of torch.save")
        if _interpret(stream).get("little_endian") is not True:
            raise ValueError("its numbers must be little-endian")
        views = _as_views(_interpret(stream))
        keys = _interpret(stream)
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise ValueError("its list of storages is damaged")
        storages = {view.storage.key: view.storage for view in views.values()}
        if set(storages) - set(keys):
            raise ValueError("storages are missing")
        starts, at, end = {}, stream.tell(), path.stat().st_size
        for key in keys:
            file.seek(at)
            (size,) = struct.unpack("<q", file.read(8))
            storage = storages.get(key)
            if storage is None:
                raise ValueError(f"the storage {key:.80} belongs to no tensor")
            if size != storage.size or at + 8 + size * storage.itemsize > end:
                raise ValueError(f"the storage {key:.80} must have {storage.size} elements; got {size}")
            starts[key], at = at + 8, at + 8 + size * storage.itemsize

    def opened(key: str) -> Callable[[], Any]:
        def at_start() -> BinaryIO:
            file = path.open("rb")
            file.seek(starts[key])
            return file

        return at_start

    return {name: _tensor(view, opened(view.storage.key)) for name, view in views.items()}


def _tensor(view: _View, opened: Callable[[], Any]) -> TorchTensor:
    """`opened` opens the file at the start of the storage."""
    itemsize, strides, steps = view.storage.itemsize, [], 1
    for size in reversed(view.shape):
        strides.insert(0, steps)
        steps *= size
    # An axis of one entry may have any stride.
    is_plain = all(size == 1 or a == b for size, a, b in zip(view.shape, strides, view.strides, strict=True))

    def copy(out: BinaryIO) -> None:
        with opened() as file:
            if is_plain:
                _skip(file, view.offset * itemsize)
                left = view.size * itemsize
                while left and (chunk := file.read(min(left, _CHUNK))):
                    out.write(chunk)
                    left -= len(chunk)
                return
            whole = np.frombuffer(file.read(view.storage.size * itemsize), np.dtype(f"V{itemsize}"))
        if len(whole) != view.storage.size:
            raise ValueError("its bytes end early")
        steps = [stride * itemsize for stride in view.strides]
        part = np.lib.stride_tricks.as_strided(whole[view.offset :], view.shape, steps)
        out.write(np.ascontiguousarray(part).tobytes())

    return TorchTensor(view.storage.dtype, view.shape, copy)


def _skip(file: BinaryIO, num: int) -> None:
    while num and (chunk := file.read(min(num, _CHUNK))):
        num -= len(chunk)


# --- pickles ------------------------------------------------------------------------------------


def _views(data: bytes) -> dict[str, _View]:
    stream = io.BytesIO(data)
    return _as_views(_interpret(stream))


def _as_views(found: Any) -> dict[str, _View]:
    if not isinstance(found, dict) or not found:
        raise ValueError(f"it must hold a dictionary of tensors; got {type(found).__name__}")
    for name, view in found.items():
        if not isinstance(name, str) or not isinstance(view, _View):
            raise ValueError(f"it must hold tensors alone; got {type(view).__name__} under {name!r:.80}")
    return found


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "BINFLOAT"}


def _interpret(stream: io.BytesIO) -> Any:
    """The value of the next pickle of a stream, in which tensors are `_View`s."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        at = marks.pop()
        found = stack[at:]
        del stack[at:]
        return found

    def pop(kind: type) -> Any:
        value = stack.pop()
        if not isinstance(value, kind):
            raise ValueError(
                f"its pickle is damaged: it must hold a {kind.__name__}; got {type(value).__name__}"
            )
        return value

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
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name in ("GLOBAL", "STACK_GLOBAL"):
                words = argument.split(" ") if name == "GLOBAL" else [pop(str), pop(str)][::-1]
                stack.append(_allowed(".".join(words)))
            elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
                num = int(name[-1])
                values = tuple(stack[-num:]) if len(stack) >= num else ()
                del stack[-num:]
                stack.append(values)
            elif name == "TUPLE":
                stack.append(tuple(since_mark()))
            elif name == "APPENDS":
                values = since_mark()
                stack[-1].extend(values) if isinstance(stack[-1], list) else pop(list)
            elif name == "APPEND":
                value = stack.pop()
                stack[-1].append(value) if isinstance(stack[-1], list) else pop(list)
            elif name in ("SETITEM", "SETITEMS"):
                values = since_mark() if name == "SETITEMS" else [stack.pop(), stack.pop()][::-1]
                target = pop(dict)
                if not all(isinstance(key, str) for key in values[::2]):
                    raise ValueError("its pickle names things by something else than text")
                target.update(zip(values[::2], values[1::2], strict=True))
                stack.append(target)
            elif name == "BINPERSID":
                stack.append(_storage(stack.pop()))
            elif name == "REDUCE":
                arguments, function = pop(tuple), pop(_Global)
                stack.append(_called(function.name, arguments))
            elif name == "BUILD":  # _metadata of a state dictionary: versions of modules
                stack.pop()
                stack.append(pop(dict))
            else:
                raise ValueError(f"its pickle must describe tensors alone; got the instruction {name}")
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"its pickle is damaged ({model_files.first_line(error)})") from error
    raise ValueError("its pickle has no end")


def _allowed(name: str) -> _Global:
    if name not in _ALLOWED:
        raise ValueError(f"its pickle must name tensors alone; got {name!r:.200}, which it would run")
    return _Global(name)


def _storage(value: Any) -> _Storage:
    """('storage', class, key, device, number of elements), before torch 1.6 with a sixth: a view of another one."""
    kind, cls, key, _, size, *view = value
    if kind != "storage" or not isinstance(cls, _Global) or cls.name not in _DTYPES or any(view):
        raise ValueError("its pickle names a storage of an unknown kind")
    if not isinstance(key, str) or type(size) is not int or not 0 <= size < 2**48:
        raise ValueError("its pickle names a storage of an unknown size")
    return _Storage(key, *_DTYPES[cls.name], size)


def _called(function: str, arguments: tuple) -> Any:
    """What the functions that rebuild tensors give, as values."""
    if function == _DICTIONARY:
        if arguments and arguments != ([],):
            raise ValueError("its pickle makes a dictionary of something")
        return {}
    if function == _PARAMETER:
        view, *_ = arguments
    elif function == _REBUILD:
        view = _View(*arguments[:4])
    else:
        raise ValueError(f"its pickle must name tensors alone; got a call of {function}")
    if not isinstance(view, _View) or not isinstance(view.storage, _Storage):
        raise ValueError("its pickle makes a tensor of something else")
    numbers = (view.offset, *view.shape, *view.strides)
    is_whole = isinstance(view.shape, tuple) and isinstance(view.strides, tuple)
    if not is_whole or len(view.shape) != len(view.strides) or len(view.shape) > 16:
        raise ValueError("its pickle names a tensor without a shape")
    if not all(type(number) is int and 0 <= number < 2**48 for number in numbers):
        raise ValueError("its pickle names a tensor of an unknown size")
    last = view.offset + sum(
        (size - 1) * stride for size, stride in zip(view.shape, view.strides, strict=True)
    )
    # The first of these also refuses a single number that is repeated without end.
    if view.size > view.storage.size or (view.size and last >= view.storage.size):
        raise ValueError("its pickle names a tensor beyond its storage")
    return view
