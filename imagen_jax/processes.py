"""The processes of a run: joining, waiting for each other, agreeing, and leaving."""

import contextlib
import errno
import hashlib
import itertools
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

T = TypeVar("T")




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


























































