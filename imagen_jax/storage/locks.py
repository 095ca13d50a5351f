"""Locks that one run at a time holds: of a file, and of an object in a bucket, kept alive by rewriting it."""

import contextlib
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from typing import IO, Any

from imagen_jax.storage import locations

_LOGGER = logging.getLogger(__name__)


def acquire_file_lock(file: IO, *, if_unsupported: bool = False) -> bool:
    """Lock an open file until it is closed or its process ends; return False at once if another process holds the lock.

    On a file system without locks, return `if_unsupported`.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return if_unsupported
    return True


class BucketLock:
    """A lock in a bucket: an object that the holder rewrites every few seconds, since buckets have no locks.

    Each write is conditional on the object being what this process wrote last, or absent at first. An object that does
    not change for `stale_s` seconds was left by a run that has ended, and is taken over. No clocks are compared.
    Google's buckets and Amazon's S3 enforce the condition; with other S3 servers TensorStore checks it before it
    writes, so the first write is verified after `settle_s` seconds.

    Args:
      url: of the object.
      beat_s: seconds between writes.
      stale_s: seconds, several times `beat_s`.
      settle_s: seconds.
    """

    def __init__(self, url: str, *, beat_s: float = 10, stale_s: float = 60, settle_s: float = 1):
        self._url, self._beat_s, self._stale_s, self._settle_s = url, beat_s, stale_s, settle_s
        self._id, self._beats = uuid.uuid4().hex, 0
        self._generation: bytes | None = None
        self._guard, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._store: Any = None

    def acquire(self) -> bool:
        """Acquire the lock until `release`; return False if another run holds it, after `stale_s` seconds at most.

        Raises:
          OSError: the bucket cannot be read or written.
        """
        found = self._read()
        if found.state == "value":
            holder = _holder(found.value)
            _LOGGER.warning(
                f"{self._url} is held by {holder}: waiting up to {self._stale_s:.0f} s to see whether it still runs"
            )
            end = time.monotonic() + self._stale_s
            while time.monotonic() < end:
                time.sleep(min(1.0, self._beat_s / 4))
                now = self._read()
                if now.state == "value" and now.stamp.generation != found.stamp.generation:
                    return False
                if now.state != "value":
                    found = now
                    break
        if not self._write(found.stamp.generation):
            if self._read().state != "value":  # not written, and for no other reason that TensorStore reports
                raise OSError(f"{self._url} cannot be written: check that its bucket exists.")
            return False
        time.sleep(self._settle_s)
        if self._read().stamp.generation != self._generation:
            return False
        self._thread.start()
        return True

    def check(self) -> None:
        """Raise an OSError if another run has taken the lock, as it may when this one has not written for long."""
        with self._guard:
            if not self._ended.is_set() and not self._write(self._generation):
                self._ended.set()
            is_lost = self._ended.is_set()
        if is_lost:
            raise OSError(
                f"{self._url} must stay this run's; another run has taken it, since this one did not write for "
                f"{self._stale_s:.0f} s: nothing more is written here; wait for the end of the other."
            )

    def release(self) -> None:
        """Remove the object, if it still is this run's."""
        with self._guard:
            was_held = self._thread.is_alive() and not self._ended.is_set()
            self._ended.set()
            if was_held:
                with contextlib.suppress(Exception):  # an object that remains becomes stale
                    self._kvs().write("", None, if_equal=self._generation).result()

    def _beat(self) -> None:
        while not self._ended.wait(self._beat_s):
            with self._guard:
                if self._ended.is_set():
                    return
                with contextlib.suppress(OSError):  # the next beat tries again; `check` says what is wrong
                    if not self._write(self._generation):
                        self._ended.set()

    def _write(self, expected: bytes) -> bool:
        self._beats += 1
        content = {"run": self._id, "host": socket.gethostname(), "process": os.getpid(), "beat": self._beats}
        with _one_line(self._url):
            generation = self._kvs().write("", json.dumps(content).encode(), if_equal=expected).result().generation
        if generation:
            self._generation = generation
        return bool(generation)

    def _read(self) -> Any:
        with _one_line(self._url):
            return self._kvs().read("").result()

    def _kvs(self) -> Any:
        if self._store is None:
            import tensorstore as ts

            # The bucket of a run that cannot be reached is an error within a minute, not after 32 tries.
            few = {"max_retries": 4, "initial_delay": "500ms", "max_delay": "8s"}
            context = ts.Context({"s3_request_retries": few, "gcs_request_retries": few})
            self._store = ts.KvStore.open(locations.kvstore(self._url), context=context).result()
        return self._store


def _holder(content: bytes) -> str:
    try:
        found = json.loads(content)
        return f"process {found['process']} of {found['host']}"
    except (ValueError, TypeError, KeyError):
        return "an unknown process"


@contextlib.contextmanager
def _one_line(url: str):
    try:
        yield
    except Exception as error:  # tensorstore raises kinds of its own
        raise OSError(
            f"{url} cannot be read and written: {' '.join(str(error).split())[:300]}. Check the name of the bucket, "
            "its region and your credentials."
        ) from error
