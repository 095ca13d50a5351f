"""Time of each operation of a program that runs, from a trace of JAX's profiler."""

import re
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import jax

Interval = tuple[float, float, str]  # start and end in ns, name of the operation


def seconds_by_operation(run: Callable[[], None], module: str, leave_out: Iterable[str] = ()) -> tuple[dict, float]:
    """Run something under JAX's profiler.

    Args:
      run: runs the program and waits for its result.
      module: name of the program's module, such as "jit_step".
      leave_out: operations that are not counted, since their time is that of others.

    Returns:
      ({operation: seconds on a device, the mean over devices}, seconds that `run` took). The time during which several
      operations run on a device is divided equally among them, so that the sum is at most the time of `run`. Empty if
      the profiler does not name operations on these devices.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory, profiler_options=options):
            begin = time.perf_counter()
            run()
            passed = time.perf_counter() - begin
        (file,) = Path(directory).rglob("*.xplane.pb")
        found = _intervals(jax.profiler.ProfileData.from_file(str(file)), module, frozenset(leave_out))
    total: Counter[str] = Counter()
    for intervals in found.values():
        for name, nanoseconds in divided(intervals).items():
            total[name] += nanoseconds / 1e9 / len(found)
    return dict(total), passed


def _intervals(data: "jax.profiler.ProfileData", module: str, leave_out: frozenset[str]) -> dict[tuple, list[Interval]]:
    """Return the intervals of each device's operations."""
    found, ends = defaultdict(list), {}
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                if event.name.startswith("end: "):  # on CPUs, where an operation may go on in other threads
                    ends[dict(event.stats).get("_c")] = event.start_ns
                    continue
                stats = dict(event.stats)
                name = stats.get("hlo_op")
                if name is None and line.name == "XLA Ops" and (shown := re.match(r"%?([\w.-]+)", event.name)):
                    name = shown[1]
                if name is None or name in leave_out or not str(stats.get("hlo_module", module)).startswith(module):
                    continue
                device = (plane.name, stats.get("device_ordinal"))
                found[device].append((event.start_ns, event.end_ns, name, stats.get("_p")))
    return {
        device: [(start, max(end, ends.get(at, end)), name) for start, end, name, at in intervals]
        for device, intervals in found.items()
    }


def divided(intervals: Iterable[Interval]) -> dict[str, float]:
    """Return the length of all intervals of each name, where each moment is divided among those that hold it."""
    known = [each for each in intervals if each[0] < each[1]]
    points = sorted([(start, True, i) for i, (start, _, _) in enumerate(known)] + [
        (end, False, i) for i, (_, end, _) in enumerate(known)
    ])  # fmt: skip
    total: Counter[str] = Counter()
    share = last = 0.0  # what each interval that is open has gained since the start
    gained = [0.0] * len(known)
    num_open = 0
    for at, is_start, i in points:
        if num_open:
            share += (at - last) / num_open
        last = at
        if is_start:
            gained[i] = share
            num_open += 1
        else:
            total[known[i][2]] += share - gained[i]
            num_open -= 1
    return dict(total)
