"""Processes and devices: the mesh, how state, batches and large images lie on it. The only file that names a mesh."""

import concurrent.futures
import contextlib
import errno
import hashlib
import itertools
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from imagen_jax import checks

# Smaller leaves than this are not worth the collectives that sharding them costs.
_MIN_SHARDED_BYTES = 2**20
_AXES = ("data", "fsdp", "height")
T = TypeVar("T")


def make_mesh(fsdp: int = 1, devices: list[jax.Device] | None = None, *, height: int = 1) -> Mesh:
    """A (data, fsdp, height) mesh over all devices.

    Args:
      fsdp: devices that share each copy of the parameters.
      devices: all unless given.
      height: devices that share the rows of each image, inside `jax.set_mesh(mesh)`.
    """
    devices = jax.devices() if devices is None else devices
    _check_ways(len(devices), fsdp, height)
    shape = (len(devices) // (fsdp * height), fsdp, height)
    return jax.make_mesh(shape, _AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def initialize(timeout_s: int | None = None) -> None:
    """Joins the processes of a run, as the environment says. The first thing that a program does.

    From then on a process that dies, or stops answering, ends the others within half a minute. Signals stay with the
    program: JAX's own service would take SIGTERM, and forget it if it comes before the first step.

    Where devices are in use already, it is too late, and nothing happens unless the variables below are set.

    TPU pod slices (also under Kubernetes), SLURM, Open MPI and JobSets are recognised by JAX itself. Anything else
    sets JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID. A single process, with none of
    these, joins nothing.

    Args:
      timeout_s: within which all have to join, or those that wait end themselves; None: what IMAGEN_JAX_JOIN_TIMEOUT
        says, or 45. More where hosts start at different times.

    Raises:
      ValueError: only some of the three variables are set, or they are no numbers; or the time limit is none.
    """
    timeout_s = timeout_s or _join_timeout()
    jax.config.update("jax_enable_preemption_service", False)
    limits = {
        "initialization_timeout": timeout_s,
        "heartbeat_timeout_seconds": _DEAD_AFTER_S,
        "shutdown_timeout_seconds": _DEAD_AFTER_S,
    }
    given = {name: os.environ.get(name) for name in _RUN_VARIABLES}
    if any(given.values()):
        address, num, index = given.values()
        port = (address or "").rpartition(":")[2]
        is_given = port != address and all(each and each.isdigit() for each in (port, num, index))
        if not (is_given and 0 < int(port) < 2**16):
            raise ValueError(
                "JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID must be set together; got "
                f"{', '.join(f'{name}={value}' for name, value in given.items())}."
            )
        if not int(index) < int(num):
            raise ValueError(f"JAX_PROCESS_ID must be below JAX_NUM_PROCESSES {num}; got {index}.")
        with _saying_that_it_waits(timeout_s):
            if int(index) == 0:
                limits["initialization_timeout"] -= _await_port(int(port), timeout_s)
            jax.distributed.initialize(address, int(num), int(index), **limits)
        return
    try:
        with _saying_that_it_waits(timeout_s):
            jax.distributed.initialize(**limits)
    except KeyError as error:
        raise ValueError(
            f"the environment of a cluster must be complete, but lacks {error}: start all processes with its own "
            f"launcher, or set {', '.join(_RUN_VARIABLES)}."
        ) from error
    except (ValueError, RuntimeError) as error:
        # JAX found no cluster around it, so there is this process alone; or it is in use already.
        if not any(words in str(error) for words in ("coordinator_address", "must be called before")):
            raise


def _await_port(port: int, timeout_s: int) -> int:
    """Waits until a port of this machine is free, which an earlier run that ends may still hold: gRPC would fail.
    Returns the seconds that it took, below `timeout_s`."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    for waited in itertools.count():
        try:
            socket.create_server(("", port), family=family, dualstack_ipv6=dual).close()
            return waited
        except OSError as error:
            if error.errno != errno.EADDRINUSE or waited + 1 >= timeout_s:
                raise ValueError(
                    f"JAX_COORDINATOR_ADDRESS must name a free port of process 0's host; {port} cannot be used: "
                    f"{error.strerror}."
                ) from error
            time.sleep(1)


def _join_timeout() -> int:
    given = os.environ.get("IMAGEN_JAX_JOIN_TIMEOUT", "45")
    if not given.isdigit() or not int(given):
        raise ValueError(f"IMAGEN_JAX_JOIN_TIMEOUT must be a number of seconds; got {given!r}.")
    return int(given)


@contextlib.contextmanager
def _saying_that_it_waits(timeout_s: int) -> Iterator[None]:
    """JAX ends a process that waits in vain with a stack, not with a word about why."""
    line = (
        f"waiting for the other processes of the run, up to {timeout_s} s (IMAGEN_JAX_JOIN_TIMEOUT): all of them must "
        "be started, with one address"
    )
    timer = threading.Timer(10, lambda: print(line, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


_RUN_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_DEAD_AFTER_S = 30  # without a sign of life a process counts as dead


def meet() -> None:
    """Waits until every process of the run has come here, however long that takes; needs no device.

    Whatever takes processes unequally long, such as compiling, comes before it: collectives between CPUs give up after
    half a minute, and those between accelerators keep them busy.
    """
    if jax.process_count() > 1:
        from jax._src import distributed  # JAX has no public barrier without devices

        name = f"imagen_jax {next(_meetings)}"
        distributed.global_state.client.wait_at_barrier(name, timeout_in_ms=1000 * _NEVER_S)


_meetings = itertools.count()  # the name of a barrier can be used once
_NEVER_S = 7 * 24 * 3600


LOST = 134  # the status with which JAX, too, ends a process that has lost another one


def lost_another(error: BaseException) -> bool:
    """Whether an error says that another process of the run has ended or cannot be reached."""
    words = (
        "gloo",
        "barrier",
        "heartbeat",
        "coordination service",
        "connection",
        "socket closed",
        "another task",
    )
    is_of_jax = isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    return is_of_jax and jax.distributed.is_initialized() and jax.process_count() > 1


def leave(status: int) -> None:
    """Ends this process of a run that has failed here, without waiting for the others, which may never come to the end.

    Where all have failed they get the time to say why: the first process takes the others with it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(3)
    os._exit(status)


def from_all(value: int) -> np.ndarray:
    """The value of every process, [processes]; called by all of them."""
    meet()
    return np.atleast_1d(multihost_utils.process_allgather(np.int32(value)))


class Cancelled(Exception):
    """A compilation is no longer wanted."""


_cancelled: list[threading.Thread] = []


def compiles_in_vain() -> bool:
    """Whether a compilation that was cancelled still runs: C++ cannot be stopped, nor can Python end in order then."""
    return any(thread.is_alive() for thread in _cancelled)


def compiled(function: Any, *args: Any, cancelled: Callable[[], Any] | None = None) -> Any:
    """A jitted function compiled for arguments like these, once every process has its program.

    Args:
      cancelled: asked now and then, where this is the only process: others would wait for one that gives up.

    Raises:
      Cancelled: `cancelled` returned something true; the compilation goes on in vain.
    """
    if cancelled is None or jax.process_count() > 1:
        program = function.lower(*args).compile()
    else:
        program = _in_a_thread(lambda: function.lower(*args).compile(), cancelled)
    meet()
    return program


def _in_a_thread(call: Callable[[], T], cancelled: Callable[[], Any]) -> T:
    done: concurrent.futures.Future = concurrent.futures.Future()

    def work() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while True:
        try:
            return done.result(timeout=0.1)
        except TimeoutError:
            if done.done():  # the call's own
                raise
        if cancelled():
            _cancelled.append(thread)
            raise Cancelled


def agree(check: Callable[[], T]) -> T:
    """check(), which every process of a run calls. If it raises in one of them, all of them raise.

    Else those in which it did not would wait for the others in the next collective.

    Raises:
      that of `check`; elsewhere a ValueError that names the processes in which it failed.
    """
    found = error = None
    try:
        found = check()
    except Exception as raised:
        error = raised
    failed = from_all(error is not None)
    if error is not None:
        raise error
    if failed.any():
        which = ", ".join(map(str, np.flatnonzero(failed)[:8]))
        raise ValueError(
            f"every process must be able to go on; process {which} of {len(failed)} cannot, and says why."
        )
    return found


def require_same(what: dict[str, str]) -> None:
    """Raises a ValueError in every process unless all of them hold the same texts under the same names.

    Called by every process, before any other collective: processes of different code or options would hang in
    the first step, or train on different batches.
    """
    if jax.process_count() == 1:
        return
    meet()
    digests = np.array([list(hashlib.sha256(text.encode()).digest()) for text in what.values()], np.uint8)
    everywhere = np.asarray(multihost_utils.process_allgather(digests))  # [processes, names, 32]
    differs = (everywhere != everywhere[0]).any(axis=-1)  # [processes, names]
    if differs.any():
        names = [name for name, is_other in zip(what, differs.any(axis=0), strict=True) if is_other]
        which = np.flatnonzero(differs.any(axis=1))
        raise ValueError(
            f"{', '.join(names[:8])} must be the same in every process; process{'es' if len(which) > 1 else ''} "
            f"{', '.join(map(str, which[:8]))} of {len(everywhere)} {'have' if len(which) > 1 else 'has'} "
            f"another than process 0. Start all of them with one version of the code and one command."
        )


def abstract_mesh(num_devices: int, fsdp: int = 1, *, height: int = 1) -> AbstractMesh:
    """The mesh that `make_mesh` would make of so many devices, without them."""
    _check_ways(num_devices, fsdp, height)
    return AbstractMesh(
        (num_devices // (fsdp * height), fsdp, height), _AXES, axis_types=(AxisType.Auto,) * 3
    )


def _check_ways(num_devices: int, fsdp: int, height: int) -> None:
    checks.whole("run.fsdp", fsdp, 1)
    checks.whole("run.height", height, 1)
    for name, ways in {
        "run.fsdp": fsdp,
        "run.height": height,
        "run.fsdp x run.height": fsdp * height,
    }.items():
        if num_devices % ways:
            raise ValueError(f"{name} must divide the number of devices {num_devices}; got {ways}.")


def batch_ways(mesh: Mesh) -> int:
    """The number of parts that a batch is split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch(batch_size: int, accumulation: int, mesh: Mesh) -> None:
    """Every device gets the same number of images in every part of a batch."""
    ways = batch_ways(mesh)
    parts = ways * accumulation
    if batch_size % parts:
        raise ValueError(
            f"optim.batch_size must be divisible by devices x optim.accumulation = {ways} x {accumulation}; "
            f"got {batch_size}: use {max(1, round(batch_size / parts)) * parts}."
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_sharding(shapes: Any, mesh: Mesh) -> Any:
    """Shardings for a state's shapes: the largest divisible axis of each large leaf over "fsdp"."""

    def leaf(shape: jax.ShapeDtypeStruct) -> NamedSharding:
        spec: list[str | None] = [None] * len(shape.shape)
        ways = mesh.shape["fsdp"]
        divisible = [axis for axis, size in enumerate(shape.shape) if size % ways == 0]
        if ways > 1 and divisible and np.prod(shape.shape) * shape.dtype.itemsize >= _MIN_SHARDED_BYTES:
            spec[max(divisible, key=lambda axis: shape.shape[axis])] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(leaf, shapes)


def shares(abstract: Any) -> "Shares":
    """How the bytes of a tree of arrays (or their shapes), each with its sharding, lie on the devices."""
    total = per_device = whole = 0
    for leaf in jax.tree.leaves(abstract):
        size = (
            np.dtype(leaf.dtype).itemsize if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended) else 8
        )
        total += leaf.size * size
        per_device += math.prod(leaf.sharding.shard_shape(leaf.shape)) * size
        if leaf.sharding.is_fully_replicated and leaf.sharding.mesh.size > 1:
            whole += leaf.size * size
    return Shares(total, per_device, whole / max(1, total))


class Shares(NamedTuple):
    """Bytes of a tree: of one copy, on each device, and the share of the first that lies whole on each device."""

    total: int
    per_device: int
    replicated: float


def place(array: np.ndarray, mesh: Mesh | None) -> jax.Array:
    """A whole host array, the same in every process, laid on the mesh as a state's leaf is.

    None: on the default device.
    """
    if mesh is None:
        return jax.device_put(array)
    shape = jax.ShapeDtypeStruct(array.shape, array.dtype)
    return jax.make_array_from_callback(array.shape, state_sharding(shape, mesh), lambda index: array[index])


@lru_cache(maxsize=32)
def local_rows(mesh: Mesh, size: int) -> np.ndarray:
    """The rows of a global batch of `size` that lie on this process's devices, in order; not to be written to.

    They need not be neighbours: a mesh on a TPU slice follows the slice's links, not the processes. Processes whose
    devices share the rows of an image have the same ones.
    """
    blocks = batch_sharding(mesh).addressable_devices_indices_map((size,)).values()
    rows = np.unique(np.concatenate([np.arange(size)[index] for index in blocks]))
    rows.setflags(write=False)  # the same array is handed out at every step
    return rows


def shard_batch(batch: Any, mesh: Mesh, size: int | None = None) -> Any:
    """This process's `local_rows` of a global batch of `size` (None: all of it) as global arrays [size, ...], the rows
    split over all devices of `mesh`."""
    sharding = batch_sharding(mesh)

    def leaf(local: np.ndarray) -> jax.Array:
        total = len(local) if size is None else size
        rows, local = local_rows(mesh, total), np.asarray(local)

        def block(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(total)
            first = np.searchsorted(rows, start)  # a device's rows are neighbours, also among this process's
            return local[first : first + stop - start]

        return jax.make_array_from_callback((total, *local.shape[1:]), sharding, block)

    return jax.tree.map(leaf, batch)


def flag_of_all(value: bool, mesh: Mesh) -> jax.Array:
    """Starts to find out whether `value` is True in any process; called by all of them. Read it later: it is there when
    all that the devices were given before is done."""
    mine = jax.make_array_from_callback(
        (mesh.size,), _one_each(mesh), lambda index: np.full(1, value, np.int32)
    )
    return _largest(mesh)(mine)


def _one_each(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(_AXES))


@lru_cache(maxsize=8)
def _largest(mesh: Mesh) -> Any:
    return jax.jit(jnp.max, in_shardings=_one_each(mesh), out_shardings=replicated(mesh))


def constrain_batch(batch: Any, mesh: Mesh, axis: int = 0) -> Any:
    """Inside jit: keeps `axis` of every leaf split over all devices."""
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, ("data", "fsdp")))
    return jax.lax.with_sharding_constraint(batch, sharding)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A whole copy of every leaf on every device."""
    return jax.device_put(tree, replicated(mesh))


def shard_params(tree: Any, mesh: Mesh) -> Any:
    """A tree of parameters (or stages) on the mesh: large leaves over its "fsdp" devices, the rest whole on each."""
    return jax.device_put(tree, state_sharding(tree, mesh))


def sampling_shardings(stages: Any, mesh: Mesh) -> tuple[Any, NamedSharding, NamedSharding]:
    """Of (stages, text, keys): parameters as in `shard_params`, the rest split over the batch."""
    return state_sharding(stages, mesh), batch_sharding(mesh), batch_sharding(mesh)


def use_compilation_cache(directory: str | Path | None = None) -> Path:
    """Keeps compiled programs on disk, so that another process with the same ones compiles nothing.

    In `directory`; else where JAX_COMPILATION_CACHE_DIR says, or in the user's cache directory.
    """
    given = directory or jax.config.jax_compilation_cache_dir
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(given) if given else Path(home) / "imagen_jax" / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return path


def use_mesh(mesh: Mesh) -> Any:
    """A context in which functions that jit traces split their images over `mesh`."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def constrain_images(images: jax.Array) -> jax.Array:
    """Inside jit and a mesh: [B, H, W, C] with B over "data" and "fsdp", and H over "height".

    The mesh is that of `use_mesh` or `jax.set_mesh`; without one nothing is constrained.
    """
    ways = jax.sharding.get_abstract_mesh().shape.get("height", 1)
    if images.shape[1] % ways:
        raise ValueError(
            f"height must divide the rows of every stage's image, {images.shape[1]}; got {ways}."
        )
    return constrain_activations(images)


def constrain_activations(h: jax.Array) -> jax.Array:
    """`constrain_images` for what a network makes of them; an axis that does not divide stays whole.

    Left to itself, the compiler might follow the parameters' sharding instead of the batch's. (Kernels are left to it:
    forced to be gathered whole, they cost the 2B base half as many bytes of exchange again, and 3 GiB of each chip.)
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or "height" not in mesh.shape:
        return h
    batch = ("data", "fsdp") if h.shape[0] % batch_ways(mesh) == 0 else None
    rows = "height" if h.shape[1] % mesh.shape["height"] == 0 else None
    return jax.lax.with_sharding_constraint(h, PartitionSpec(batch, rows))


def whole_with_split_rows(kernel: jax.Array) -> jax.Array:
    """A convolution's kernel, gathered whole where images are split by rows as well.

    XLA's partitioner (jax 0.10.2) can compute wrong sums from a kernel whose input channels are split over "fsdp" and
    images whose batch is split over the same axis, and rows over another. Seen at up to four rows a device: at one with
    8 channels, at four with 64.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape.get("height", 1) == 1:
        return kernel
    return jax.lax.with_sharding_constraint(kernel, PartitionSpec())


def pad_batch(tree: Any, size: int, mesh: Mesh) -> Any:
    """The leaves [B, ...] of `tree` on the mesh as [size, ...], B <= size: the last row is repeated to fill up.

    Crop the result to the first B rows afterwards. `size` is a multiple of the number of devices.
    """

    def leaf(rows: jax.Array) -> jax.Array:
        return jax.device_put(_padded(rows, size), batch_sharding(mesh))

    return jax.tree.map(leaf, tree)


def _padded(rows: jax.Array, size: int) -> jax.Array:
    missing = size - len(rows)
    return jnp.concatenate([rows, jnp.repeat(rows[-1:], missing, axis=0)]) if missing else rows


def pmap_sample_cascade(stages: Any, text: Any, keys: jax.Array, **options: Any) -> Any:
    """`sample_cascade` with one program per device: the same images, to rounding.

    Args:
      stages: as for `sample_cascade`; every device gets a whole copy, at every call unless they lie there already, as
        `replicate(stages, make_mesh())` puts them.
      text, keys, **options: as for `sample_cascade`. The batch is split over this process's devices, padded
        with copies of its last row and cropped again.

    Returns:
      what `sample_cascade` returns.
    """
    # Inside, since stages constrain their images with this file.
    from imagen_jax.cascade import check_cascade, raise_if_any_broken

    return_all = checks.boolean("return_all", options.pop("return_all", False))
    chosen = check_cascade(stages, text, keys, **options).stages  # values are not known to the program
    batch, devices = len(keys), jax.local_device_count()
    rows = -(-batch // devices)

    def split(leaf: jax.Array) -> jax.Array:
        return _padded(leaf, devices * rows).reshape(devices, rows, *leaf.shape[1:])

    by_image = {name: options.pop(name) for name in BY_IMAGE if options.get(name) is not None}
    negative, weak = options.pop("negative", None), options.pop("weak", None)
    if negative is not None:
        by_image["negative"] = jax.tree.map(lambda a: jnp.broadcast_to(a, (batch, *a.shape[1:])), negative)
    weak = tuple(weak) if isinstance(weak, list) else weak
    plain = lambda v: v.tolist() if hasattr(v, "tolist") else v
    hashable = {k: tuple(plain(v)) if np.ndim(v) else plain(v) for k, v in options.items()}
    program = _pmapped(tuple(sorted(hashable.items())))
    images, infos = program(stages, weak, *jax.tree.map(split, (text, keys, by_image)))
    merge = lambda leaf: leaf.reshape(devices * rows, *leaf.shape[2:])[:batch]
    images, infos = jax.tree.map(merge, (images, infos))
    raise_if_any_broken(chosen, infos)
    return images if return_all else images[-1]


# Options of `sample_cascade` with one row per image.
BY_IMAGE = ("low_res", "image", "mask", "cond_image", "z_1")


@lru_cache(maxsize=32)
def _pmapped(options: tuple[tuple[str, Any], ...]) -> Any:
    from imagen_jax.cascade import run_cascade

    def program(stages, weak, text, keys, by_image):
        return run_cascade(stages, text, keys, weak=weak, **by_image, **dict(options))

    return jax.pmap(program, axis_name="devices", in_axes=(None, None, 0, 0, 0))
