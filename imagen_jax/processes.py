"""The processes of a run: join them, wait at a barrier, share results and errors, and abort."""

import contextlib
import errno
import hashlib
import itertools
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

_LOGGER = logging.getLogger(__name__)

T = TypeVar("T")

STATUS_PROCESS_LOST = 134  # JAX itself exits with it when it loses another process
_RUN_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_HEARTBEAT_TIMEOUT_S = 30
_BARRIER_TIMEOUT_S = 7 * 24 * 3600
_barrier_numbers = itertools.count()


def initialize(timeout_s: int | None = None) -> None:
    """Join the processes of a run, as the environment describes it. Call it before any device is used.

    TPU pod slices (also under Kubernetes), SLURM, Open MPI and JobSets are recognised by JAX itself. Elsewhere, set
    JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID. Without any of these, the process runs
    alone. Where devices are in use already and the variables are not set, nothing happens.

    Afterwards, when a process ends or stops answering, the others end within half a minute. JAX's preemption service
    is turned off: it would take SIGTERM from the program, and drop one that arrives before the first step.

    Args:
      timeout_s: seconds within which all processes must join; None reads IMAGEN_JAX_JOIN_TIMEOUT, 45 by default.

    Raises:
      ValueError: the variables are incomplete or no numbers, or the time limit is none.
    """
    timeout_s = timeout_s or _join_timeout()
    jax.config.update("jax_enable_preemption_service", False)
    limits = {
        "initialization_timeout": timeout_s,
        "heartbeat_timeout_seconds": _HEARTBEAT_TIMEOUT_S,
        "shutdown_timeout_seconds": _HEARTBEAT_TIMEOUT_S,
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
        with _announce_wait(timeout_s):
            if int(index) == 0:
                limits["initialization_timeout"] -= wait_for_port(int(port), timeout_s)
            jax.distributed.initialize(address, int(num), int(index), **limits)
        return
    try:
        with _announce_wait(timeout_s):
            jax.distributed.initialize(**limits)
    except KeyError as error:
        raise ValueError(
            f"the environment of a cluster must be complete; got none of {error}: start all processes with the "
            f"cluster's launcher, or set {', '.join(_RUN_VARIABLES)}."
        ) from error
    except (ValueError, RuntimeError) as error:
        # JAX found no cluster, so this process runs alone; or its devices are in use already.
        if not any(words in str(error) for words in ("coordinator_address", "must be called before")):
            raise


def wait_for_port(port: int, timeout_s: int) -> int:
    """Wait until a port of this machine is free: an earlier run that is ending may still hold it, and gRPC would fail.

    Returns:
      the seconds waited, below `timeout_s`.

    Raises:
      ValueError: the port cannot be used, or is still in use after `timeout_s` seconds.
    """
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    for waited in itertools.count():
        try:
            socket.create_server(("", port), family=family, dualstack_ipv6=dual).close()
            return waited
        except OSError as error:
            if error.errno != errno.EADDRINUSE or waited + 1 >= timeout_s:
                raise ValueError(
                    f"JAX_COORDINATOR_ADDRESS must name a free port of process 0's host; got {port}, which cannot "
                    f"be used ({error.strerror}): choose another."
                ) from error
            time.sleep(1)


def _join_timeout() -> int:
    given = os.environ.get("IMAGEN_JAX_JOIN_TIMEOUT", "45")
    if not given.isdigit() or not int(given):
        raise ValueError(f"IMAGEN_JAX_JOIN_TIMEOUT must be a number of seconds; got {given!r}.")
    return int(given)


@contextlib.contextmanager
def _announce_wait(timeout_s: int) -> Iterator[None]:
    """Log after ten seconds what the process waits for: on timeout JAX prints only a stack trace."""
    line = (
        f"waiting for the other processes of the run, up to {timeout_s} s (IMAGEN_JAX_JOIN_TIMEOUT): all of them must "
        "be started, with one address"
    )
    timer = threading.Timer(10, lambda: _LOGGER.warning(line))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def barrier() -> None:
    """Wait until every process of the run has called this, however long that takes. Uses no device.

    Place it after work whose duration differs between processes, such as compiling: collectives between CPUs give up
    after half a minute, and those between accelerators keep them busy.
    """
    if jax.process_count() > 1:
        # Not sync_global_devices of JAX or Orbax, which are collectives on devices and have a time limit.
        from orbax.checkpoint import multihost

        key = f"imagen_jax {next(_barrier_numbers)}"  # the name of a barrier can be used once
        multihost.get_barrier_sync_fn()(key=key, timeout_ms=1000 * _BARRIER_TIMEOUT_S)


def all_gather_int(value: int) -> np.ndarray:
    """Return the value of every process, int32 [processes]. Every process calls it."""
    barrier()
    return np.atleast_1d(multihost_utils.process_allgather(np.int32(value)))


def check_on_all_processes(check: Callable[[], T]) -> T:
    """Return check(), or raise in every process if it raises in one of them. Every process calls it.

    Otherwise the processes in which it succeeds would wait for the others in the next collective.

    Raises:
      Exception: the error of `check`; in processes without one, a ValueError that names those with one.
    """
    found = error = None
    try:
        found = check()
    except Exception as raised:
        error = raised
    failed = all_gather_int(error is not None)
    if error is not None:
        raise error
    if failed.any():
        which = ", ".join(map(str, np.flatnonzero(failed)[:8]))
        raise ValueError(
            f"every process must be able to continue; got an error in process {which} of {len(failed)}: see its log."
        )
    return found


def require_same(texts: dict[str, str]) -> None:
    """Check that all processes hold the same texts under the same names. Every process calls it.

    Call it before any other collective: processes with different code or options would hang in the first step, or
    train on different batches.

    Raises:
      ValueError: in every process; names the texts that differ and the processes that differ from process 0.
    """
    if jax.process_count() == 1:
        return
    barrier()
    digests = np.array([list(hashlib.sha256(text.encode()).digest()) for text in texts.values()], np.uint8)
    everywhere = np.asarray(multihost_utils.process_allgather(digests))  # [processes, names, 32]
    differs = (everywhere != everywhere[0]).any(axis=-1)  # [processes, names]
    if differs.any():
        names = [name for name, is_other in zip(texts, differs.any(axis=0), strict=True) if is_other]
        which = np.flatnonzero(differs.any(axis=1))
        raise ValueError(
            f"{', '.join(names[:8])} must be the same in every process; got a difference from process 0 in "
            f"process{'es' if len(which) > 1 else ''} {', '.join(map(str, which[:8]))} of {len(everywhere)}: "
            "start all of them with one version of the code and one command."
        )


def is_process_lost(error: BaseException) -> bool:
    """Whether an error says that another process of the run has ended or is unreachable."""
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


def abort(status: int) -> None:
    """End this process without waiting for the others, which may never finish.

    It waits three seconds, so that processes that failed together can all print why: when the first process ends, JAX
    ends the others.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(3)
    os._exit(status)
