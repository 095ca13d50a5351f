"""Rendering of untrusted SVG: checked, and in a process of its own with limits of time and memory."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageColor

from imagen_jax.prepare.quarantine import Unusable

SECONDS = 10  # of processor time for one picture; ordinary ones take milliseconds
MEMORY = 2**30  # bytes of the rendering process
MAX_ELEMENTS = 2**14
_PROCESS = Path(__file__).with_name("renderer.py")
_FOREIGN = {"script", "foreignObject", "image", "feImage", "text", "style", "iframe", "a"}
_URL = re.compile(r"url\(\s*['\"]?\s*(?!#)", re.IGNORECASE)


def document(body: str, box: tuple[float, float, float, float]) -> str:
    """Return the SVG document of an icon, its box in the middle of a square.

    Raises:
      Unusable: it is not well-formed, or refers to anything outside of it.
    """
    left, top, width, height = box
    side = max(width, height)
    corner = f"{left - (side - width) / 2:g} {top - (side - height) / 2:g}"
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{corner} {side:g} {side:g}" width="{side:g}" height="{side:g}">{body}</svg>'
    )
    if "<!DOCTYPE" in body or "<!ENTITY" in body:
        raise Unusable("undecodable", "it defines entities")
    try:
        root = ElementTree.fromstring(svg)
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise Unusable("undecodable", f"not well-formed: {error}") from error
    for number, element in enumerate(root.iter()):
        if number > MAX_ELEMENTS:
            raise Unusable("too large", f"more than {MAX_ELEMENTS} elements")
        _check(element)
    return svg


def _check(element: ElementTree.Element) -> None:
    """Raise Unusable if an element needs anything outside of the document."""
    tag = _local(element.tag) if isinstance(element.tag, str) else ""
    if tag in _FOREIGN:
        raise Unusable("undecodable", f"it has <{tag}>, which is not rendered")
    for name, value in element.attrib.items():
        if (_local(name) == "href" and not value.strip().startswith("#")) or _URL.search(value):
            raise Unusable("undecodable", f"<{tag}> refers to something outside: {value[:100]}")


def _local(name: str) -> str:
    """Return a name without its namespace."""
    return name.rpartition("}")[2]


class Renderer:
    """Renders SVG in another process, which is started at the first picture and again after it was ended.

    Use it as a context manager, or call `close`.
    """

    def __init__(self, size: int, background: str):
        self._size, self._background = size, background
        self._process: subprocess.Popen | None = None
        self._pipe: Connection | None = None

    def __enter__(self) -> Renderer:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def __call__(self, svg: str) -> np.ndarray:
        """Render a document of `document` as uint8 [size, size, 3].

        Raises:
          Unusable: it cannot be rendered, takes too much time or memory, or shows nothing.
        """
        if self._process is None:
            self._start()
        request = {"svg": svg, "size": self._size, "background": self._background, "seconds": SECONDS}
        try:
            self._pipe.send_bytes(json.dumps(request).encode())
            reply = self._pipe.recv_bytes()
        except (EOFError, OSError) as error:
            raise self._ended() from error
        if not reply.startswith(b"\x89PNG"):
            raise Unusable("undecodable", reply.decode("utf-8", "replace")[:500])
        picture = np.asarray(Image.open(io.BytesIO(reply)).convert("RGB"))
        if picture.shape != (self._size, self._size, 3):
            raise Unusable("undecodable", f"it was rendered as {picture.shape}")
        if (picture == ImageColor.getrgb(self._background)).all():
            raise Unusable("no picture", "nothing is visible on the background")
        return picture

    def _start(self) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        with theirs:
            command = [sys.executable, "-P", str(_PROCESS), str(theirs.fileno()), str(MEMORY)]
            # A preloaded allocator may reserve more of the address space than the process is given.
            environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)

    def _ended(self) -> Unusable:
        status = self._process.wait()
        self.close()
        if status == -signal.SIGXCPU:
            return Unusable("too large", f"more than {SECONDS} s to render")
        end = signal.Signals(-status).name if status < 0 else f"status {status}"
        return Unusable(
            "too large", f"its renderer ended ({end}), for lack of {MEMORY >> 20} MiB or by an error"
        )

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._pipe.close()
            self._process.kill()
            self._process.wait()
        self._process = self._pipe = None
