"""Kills the processes of a training run at random moments and restarts it, and checks that nothing is lost by it.

  python benchmarks/soak.py --preset shapes --stage base --workdir /tmp/soak --kills 20 \
      --run.num-steps 60 --run.checkpoint-every 10
  python benchmarks/soak.py --preset shapes --stage base --workdir /tmp/elastic --elastic --run.num-steps 50

Several processes of this machine, each with some simulated CPU devices, train a stage: first without a disturbance,
then with one of them killed (SIGKILL) after a random time, again and again. All others have to end within a minute;
no checkpoint may be lost; and every run that reaches its last step must have the parameters of the undisturbed one,
to the bit. With --elastic nothing is killed: the run is continued on other numbers of processes and devices, and its
losses are compared with those of one device. Options of scripts/train.py are passed on to it.

Each kill is a line of kills.jsonl in the workdir. --within-s kills soon after a run has gone on, and --share-all
without waiting until a process notices that the other is gone; so many kills fit into an hour.
"""

import dataclasses
import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

from imagen_jax.cli import parsing, program

LEGS = ((2, 4), (1, 4), (1, 1), (1, 4), (2, 4))  # processes and devices of each


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    preset: str
    """Name of a file in configs/ without .py, or the path of such a file."""
    stage: str
    """Name of the stage in the preset."""
    workdir: Path
    """Directory for the runs; must not exist or be empty."""
    kills: int = 20
    """How often a process is killed."""
    processes: int = 2
    """Processes of a run."""
    devices: int = 4
    """Simulated devices of each process."""
    limit_s: float = 60.0
    """Seconds within which all processes must have ended once one was killed."""
    elastic: bool = False
    """Continue on 2x4, 1x4, 1x1, 1x4 and 2x4 processes and devices instead of killing."""
    within_s: float = 0.0
    """Kill within so many seconds after the first new line of metrics; 0: at any time of an undisturbed run."""
    share_all: float = 0.0
    """Share of the kills that hit all processes at once, as a power cut does; each counts as one."""
    moments: int = 0
    """Seed of the moments and of the choice of the process."""


class Run:
    """Training by several processes of this machine, started at once; `last` are options of the last one alone."""

    def __init__(
        self, arguments: list[str], log: Path, processes: int, devices: int, last: tuple[str, ...] = ()
    ):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}",
        }
        if processes > 1:
            environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
        script = Path(__file__).resolve().parent.parent / "scripts" / "train.py"
        self.processes = []
        for i in range(processes):
            own = {"JAX_PROCESS_ID": str(i)} if processes > 1 else {}
            with log.with_name(f"{log.name}-{i}.log").open("a") as file:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, str(script), *arguments, *(last if i == processes - 1 else ())],
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        env=environment | own,
                    )
                )

    def wait(self, limit_s: float | None = None) -> list[int | None]:
        """Exit statuses of all processes, None for those that still run after `limit_s` seconds."""
        end = None if limit_s is None else time.monotonic() + limit_s
        statuses = []
        for process in self.processes:
            try:
                statuses.append(process.wait(None if end is None else max(0.0, end - time.monotonic())))
            except subprocess.TimeoutExpired:
                statuses.append(None)
        return statuses

    def end(self) -> None:
        """Kills whatever still runs."""
        for process in self.processes:
            process.kill()
            process.wait()


def train(arguments: list[str], workdir: Path, processes: int, devices: int, *options: str) -> float:
    """Trains to the end; returns the seconds that it took. Raises a ValueError if it did not get there."""
    begin = time.monotonic()
    log = workdir.with_name(f"{workdir.name}-log")
    run = Run([*arguments, "--workdir", str(workdir), *options], log, processes, devices)
    try:
        statuses = run.wait()
    finally:
        run.end()
    if any(statuses):
        raise ValueError(f"a run must end with status 0; got {statuses}: see {log}-*.log.")
    return time.monotonic() - begin


def newest(workdir: Path, stage: str) -> int:
    """The step of the newest checkpoint, -1 without any."""
    folder = workdir / stage / "checkpoints"
    steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    return max(steps, default=-1)


def parameters(workdir: Path, stage: str) -> list:
    """The averaged parameters of the newest checkpoint."""
    import jax
    import numpy as np

    from imagen_jax import load_stage

    return [np.asarray(leaf) for leaf in jax.tree.leaves(load_stage(workdir / stage).params)]


def kill_and_restart(options: Options, arguments: list[str]) -> None:
    import numpy as np

    size, root, rng = (options.processes, options.devices), options.workdir, random.Random(options.moments)
    train(arguments, root / "whole", *size)
    expected = parameters(root / "whole", options.stage)
    seconds = train(arguments, root / "again", *size)  # compiled already, as all that follow
    print(f"undisturbed: {seconds:.0f} s, step {newest(root / 'whole', options.stage)}", flush=True)

    killed = ended = 0
    longest = 0.0
    workdir = root / "killed-0"
    while True:
        before = newest(workdir, options.stage)
        run = Run([*arguments, "--workdir", str(workdir)], workdir.with_name(f"{workdir.name}-log"), *size)
        try:
            moment = None
            if killed < options.kills and options.within_s:
                wait_for_metrics(run, workdir, options.stage)
                moment = rng.uniform(0, options.within_s)
            elif killed < options.kills:
                moment = rng.uniform(0, seconds)
            statuses = run.wait(moment)
            if any(statuses):
                raise ValueError(f"no process may fail by itself; got {statuses}: see {workdir}-log-*.log.")
            if None in statuses:
                victims = [i for i, status in enumerate(statuses) if status is None]
                if rng.random() >= options.share_all:
                    victims = [rng.choice(victims)]
                for victim in victims:
                    run.processes[victim].kill()
                begin = time.monotonic()
                statuses = run.wait(options.limit_s)
                took = time.monotonic() - begin
                killed, longest = killed + 1, max(longest, took)
                after = newest(workdir, options.stage)
                row = {"kill": killed, "run": ended, "processes": victims, "moment_s": moment, "ended_s": took}
                row |= {"before": before, "after": after, "statuses": statuses}
                with (root / "kills.jsonl").open("a") as table:
                    table.write(json.dumps(row) + "\n")
                print(
                    f"kill {killed}: process {', '.join(map(str, victims))} after {moment:.0f} s; all ended "
                    f"{took:.0f} s later; newest checkpoint {before} -> {after}",
                    flush=True,
                )
                if None in statuses:
                    raise ValueError(f"all processes must end in {options.limit_s:.0f} s; got {statuses}.")
                if after < before:
                    raise ValueError(
                        f"no checkpoint may be lost; {before} was there, and now {after} is newest."
                    )
                continue
        finally:
            run.end()
        if any(statuses):
            raise ValueError(f"a run must end with status 0; got {statuses}: see {workdir}-log-*.log.")
        for one, other in zip(expected, parameters(workdir, options.stage), strict=True):
            np.testing.assert_array_equal(one, other)
        ended += 1
        print(
            f"run {ended} reached its last step; its parameters are those of the undisturbed one", flush=True
        )
        if killed >= options.kills:
            break
        workdir = root / f"killed-{ended}"
    print(
        f"{killed} kills, {ended} runs reached their last step with the same parameters to the bit; processes "
        f"ended at most {longest:.0f} s after a kill; no checkpoint was lost."
    )


def wait_for_metrics(run: Run, workdir: Path, stage: str) -> None:
    """Waits until a run has written a line of metrics, or one of its processes has ended."""
    file = workdir / stage / "metrics.jsonl"
    size = file.stat().st_size if file.exists() else 0
    while None in run.wait(0.05) and not any(run.wait(0)):
        now = file.stat().st_size if file.exists() else 0
        if now > size:
            return
        size = min(size, now)  # lines after the last checkpoint are dropped when a run goes on


def rows(workdir: Path, stage: str) -> list[dict]:
    """What the run wrote about its steps."""
    return [json.loads(line) for line in (workdir / stage / "metrics.jsonl").read_text().splitlines()]


def losses(workdir: Path, stage: str) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in rows(workdir, stage)}


def change_devices(options: Options, arguments: list[str], num_steps: int) -> None:
    root = options.workdir
    often = ("--run.log-every", "1")
    train(arguments, root / "one", 1, 1, *often, "--run.num-steps", str(num_steps))
    expected = losses(root / "one", options.stage)
    for i, (processes, devices) in enumerate(LEGS):
        last = num_steps * (i + 1) // len(LEGS)
        train(arguments, root / "elastic", processes, devices, *often, "--run.num-steps", str(last))
        found = losses(root / "elastic", options.stage)
        apart = max(abs(found[step] - expected[step]) for step in found)
        print(
            f"{processes} x {devices} up to step {last}: losses differ by at most {apart:.1e} so far",
            flush=True,
        )
        if apart > 1e-5:
            raise ValueError(f"losses must differ by at most 1e-5; got {apart:.1e}.")
        if sorted(found) != list(range(1, last + 1)):
            raise ValueError(f"every step up to {last} must be there once; got {sorted(found)}.")


def main(parsed) -> None:
    options, config = parsed
    if options.kills < 1 or options.processes < 1 or options.devices < 1:
        raise ValueError("--kills, --processes and --devices must be positive.")
    if options.workdir.exists() and any(options.workdir.iterdir()):
        raise ValueError(f"--workdir must not exist or be empty; got {options.workdir}.")
    options.workdir.mkdir(parents=True, exist_ok=True)
    own = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Options)}
    if options.elastic:
        own |= {"--run.num-steps", "--run.log-every"}  # which it sets for each of its runs
    arguments = ["--preset", options.preset, "--stage", options.stage, *passed_on(sys.argv[1:], own)]
    if options.elastic:
        change_devices(options, arguments, config.run.num_steps)
    else:
        kill_and_restart(options, arguments)


def passed_on(arguments: list[str], own: set[str]) -> list[str]:
    """The options that are not this script's own, with their values."""
    kept, is_kept = [], False
    for argument in arguments:
        if argument.startswith("--"):
            is_kept = argument.partition("=")[0].replace("_", "-") not in own
        if is_kept:
            kept.append(argument)
    return kept


if __name__ == "__main__":
    program.run(main, lambda args: parsing.parse_stage(Options, __doc__, args))
