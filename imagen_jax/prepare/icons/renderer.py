"""Process that renders SVG with resvg: `python renderer.py DESCRIPTOR MEMORY`; see rendering.py.

It imports nothing of this package, so that it starts fast and its memory is that of the renderer.
"""

import json
import resource
import signal
import sys
from multiprocessing.connection import Connection


def main() -> None:
    import resvg_py

    pipe, memory = Connection(int(sys.argv[1])), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent ends it
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            request = json.loads(pipe.recv_bytes())
        except EOFError:
            return
        used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(used + request["seconds"]) + 1, most))
        size = request["size"]
        try:
            reply = resvg_py.svg_to_bytes(
                svg_string=request["svg"], width=size, height=size, background=request["background"],
                skip_system_fonts=True,
            )  # fmt: skip
            reply = bytes(reply)
        except BaseException as error:  # panics of Rust are no Exception
            reply = " ".join(f"{type(error).__name__}: {error}".split()).encode()
        pipe.send_bytes(reply)


if __name__ == "__main__":
    main()
