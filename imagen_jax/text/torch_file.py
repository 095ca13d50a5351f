"""Conversion of weights as torch.save writes them (pytorch_model.bin) to safetensors, without torch.

Such a file holds the bytes of its tensors and a pickle that describes them, which `torch_pickle` reads.
"""

import contextlib
import functools
import io
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from imagen_jax import checks
from imagen_jax.storage import files
from imagen_jax.text import model_files, torch_pickle
from imagen_jax.text.torch_pickle import Unreadable

_CHUNK = 16 << 20  # bytes copied at once
_MAX_PICKLE_BYTES = 4 << 20  # of a model with 15,000 tensors; the pickle of a real one has some hundred kB
# Of the format before torch 1.6.
_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001


class TorchTensor(NamedTuple):
    """A tensor in a file of torch.

    Attributes:
      dtype: as safetensors names it.
      shape: of the tensor.
      nbytes: of its values.
      copy: writes its bytes, in C order, to an open file.
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    copy: Callable[[BinaryIO], None]


def tensors(path: Path) -> dict[str, TorchTensor]:
    """Return the tensors of a file, by name; their bytes are read by `TorchTensor.copy`.

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
        raise ValueError(
            f"{path} must hold tensors alone, as torch.save writes them; it cannot be converted ({reason}): get it "
            "again, or another model."
        ) from error


def convert(directory: Path, output: Path, is_needed: Callable[[str], bool] = lambda name: True) -> Path:
    """Write safetensors from the pickles of a directory, one file or its shards, tensor by tensor.

    model.safetensors is written from pytorch_model.bin, and diffusion_pytorch_model.safetensors, as diffusers names it,
    from diffusion_pytorch_model.bin.

    Args:
      directory: of the model.
      output: where model.safetensors is written; it must exist.
      is_needed: of a tensor's name; others are left out.

    Returns:
      The file that was written.

    Raises:
      ValueError: there is nothing to convert, the file is there already, room is lacking, or as `tensors` does.
    """
    is_diffusers = any(directory.glob("diffusion_pytorch_model*.bin*"))
    stem, source = ("diffusion_pytorch_model",) * 2 if is_diffusers else ("model", "pytorch_model")
    target = output / f"{stem}.safetensors"
    if target.exists() or (output / f"{target.name}.index.json").exists():
        raise ValueError(f"{output} must not have safetensors yet; got {target.name}: nothing is to be converted.")
    index, single = directory / f"{source}.bin.index.json", directory / f"{source}.bin"
    if not index.is_file() and not single.is_file():
        raise ValueError(f"a directory to convert must hold {source}.bin; got {directory}, which has none.")
    found: dict[str, tuple[Path, TorchTensor]] = {}
    for path in [single] if single.is_file() else model_files.shards(index):
        for name, tensor in tensors(path).items():
            if name in found:
                raise ValueError(
                    f"{path} must hold tensors of its own; got {name}, which another shard has too: get them again."
                )
            if is_needed(name):
                found[name] = path, tensor
    if not found:
        raise ValueError(
            f"{directory} must hold tensors that its config.json asks for; got none: get a complete copy."
        )
    header = model_files.header({name: tensor[:3] for name, (_, tensor) in found.items()})
    size = len(header) + sum(tensor.nbytes for _, tensor in found.values())
    stat = os.statvfs(output)
    free = stat.f_bavail * stat.f_frsize
    checks.require(free >= size, str(output), f"have room for {size} bytes", free, "make room")
    with files.replacing(target) as file:
        file.write(header)
        for name, (path, tensor) in found.items():
            end = file.tell() + tensor.nbytes
            with _damage_named(path):
                tensor.copy(file)
                if file.tell() != end:
                    raise Unreadable(f"the bytes of {name} end early")
    return target


# --- formats ------------------------------------------------------------------------------------


def _zip_tensors(path: Path) -> dict[str, TorchTensor]:
    """Return the tensors of a file of torch 1.6 or later: an archive of data.pkl and data/KEY for each storage."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise Unreadable(f"it must hold one data.pkl; got {len(pickles)}")
        root = pickles[0].removesuffix("data.pkl")
        order = members.get(f"{root}byteorder")
        if order is not None and (order.file_size > 16 or archive.read(order) != b"little"):
            raise Unreadable("its numbers must be little-endian")
        if members[pickles[0]].file_size > _MAX_PICKLE_BYTES:
            raise Unreadable(f"its data.pkl must have at most {_MAX_PICKLE_BYTES} bytes")
        views = torch_pickle.as_views(torch_pickle.interpret(io.BytesIO(archive.read(pickles[0]))))
    for name, view in views.items():
        info, storage = members.get(f"{root}data/{view.storage.key}"), view.storage
        if info is None:
            raise Unreadable(f"the bytes of {name} are missing")
        # What torch writes is not compressed, so nothing can unfold to more than the file.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != storage.size * storage.itemsize:
            raise Unreadable(f"the bytes of {name} must be {storage.size * storage.itemsize}, uncompressed")

    return {
        name: _tensor(view, functools.partial(_member, path, f"{root}data/{view.storage.key}"))
        for name, view in views.items()
    }


@contextlib.contextmanager
def _member(path: Path, name: str) -> Iterator[BinaryIO]:
    """Open a member of an archive; its checksum is verified when it is read to its end."""
    with zipfile.ZipFile(path) as archive, archive.open(name) as file:
        yield file


def _legacy_tensors(path: Path) -> dict[str, TorchTensor]:
    """Return the tensors of a file of torch before 1.6: five pickles, then each storage after its size."""
    with path.open("rb") as file:
        head = file.read(_MAX_PICKLE_BYTES)
        next_pickle = functools.partial(torch_pickle.interpret, stream := io.BytesIO(head))
        if next_pickle() != _LEGACY_MAGIC or next_pickle() != _LEGACY_VERSION:
            raise Unreadable("it is no file of torch.save")
        if next_pickle().get("little_endian") is not True:
            raise Unreadable("its numbers must be little-endian")
        views, keys = torch_pickle.as_views(next_pickle()), next_pickle()
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise Unreadable("its list of storages is damaged")
        storages = {view.storage.key: view.storage for view in views.values()}
        if set(storages) - set(keys):
            raise Unreadable("storages are missing")
        starts, at, end = {}, stream.tell(), path.stat().st_size
        for key in keys:
            file.seek(at)
            (size,) = struct.unpack("<q", file.read(8))
            storage = storages.get(key)
            if storage is None:
                raise Unreadable(f"the storage {key:.80} belongs to no tensor")
            if size != storage.size or at + 8 + size * storage.itemsize > end:
                raise Unreadable(f"the storage {key:.80} must have {storage.size} elements; got {size}")
            starts[key], at = at + 8, at + 8 + size * storage.itemsize

    return {
        name: _tensor(view, functools.partial(_opened_at, path, starts[view.storage.key]))
        for name, view in views.items()
    }


@contextlib.contextmanager
def _opened_at(path: Path, start: int) -> Iterator[BinaryIO]:
    with path.open("rb") as file:
        file.seek(start)
        yield file


def _tensor(view: torch_pickle.View, opened: Callable[[], AbstractContextManager[BinaryIO]]) -> TorchTensor:
    """Return the tensor of a view; `opened` opens the file at the start of its storage."""
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
            raise Unreadable("its bytes end early")
        steps = [stride * itemsize for stride in view.strides]
        part = np.lib.stride_tricks.as_strided(whole[view.offset :], view.shape, steps)
        out.write(np.ascontiguousarray(part).tobytes())

    return TorchTensor(view.storage.dtype, view.shape, view.size * itemsize, copy)


def _skip(file: BinaryIO, num: int) -> None:
    while num and (chunk := file.read(min(num, _CHUNK))):
        num -= len(chunk)
