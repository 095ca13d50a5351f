"""What a stage costs by batch, size of image, length of text and steps of sampling, and what links cost by chips.

  python benchmarks/cost.py --preset base64:300m --topology v5e:4x4
  python benchmarks/cost.py --preset sr256 --batch 64 --no-compile

One thing at a time differs from the preset, for the train step and for the sampler: work, memory traffic and peak
memory, and images/s of the slice, estimated from shapes alone. A step takes at least the longest of its parts: products
at half of the chip's peak rate, memory traffic, links.

Then the train step is compiled for slices of --chips, with as many images a chip as --batch has on --topology. That
needs libtpu (pip install -e '.[tpu]') but no TPU, and minutes for each program; what --output holds is not compiled
again. Seconds of links are the bytes of the compiled collectives over the bandwidth of a chip's links, without latency.

Writes cost.json and cost.png to --output, and prints Markdown tables.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import io
import itertools
import json
import math
from importlib import metadata
from pathlib import Path
from typing import Any

from PIL import Image

from imagen_jax.checks import choice, require
from imagen_jax.cli import parsing, program
from imagen_jax.config import StageConfig
from imagen_jax.storage import files

AXES = {"batches": "images in a batch", "sizes": "pixels a side", "lengths": "text tokens", "steps": "sampling steps"}
KINDS = {"train": "train step", "sample": "sampler"}
PARTS = {"compute": "tab:blue", "memory": "tab:orange", "links": "tab:red"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    preset: str = "base64:300m"
    """Name of a file in configs/ without .py, with its variant after a colon, or the path of such a file."""
    stage: str = ""
    """Name of the stage in the preset; empty: the first."""
    topology: str = "v5e:4x4"
    """TPU slice such as v5e:4x4, or GPUs of one node such as h100:8."""
    batch: int = 128
    """Images in a batch, over all devices of --topology."""
    batches: tuple[int, ...] = (16, 64, 128, 512, 2048)
    """Batches in place of --batch."""
    sizes: tuple[int, ...] = ()
    """Sizes of images, low_res_size in proportion; empty: half of the preset's size, the same, twice and four times."""
    lengths: tuple[int, ...] = (32, 128, 256, 512)
    """Lengths of text in tokens."""
    steps: tuple[int, ...] = (8, 16, 32, 64, 128)
    """Steps of sampling."""
    chips: tuple[int, ...] = (8, 16, 64, 256)
    """Chips of the slices that the train step is compiled for."""
    fsdp: tuple[int, ...] = ()
    """Chips that share each copy of the state, in the compiled programs; empty: as in the preset."""
    compile: bool = True
    """Compile for --chips."""
    output: Path = Path("runs/cost")
    """Directory of the compiled programs' figures, cost.json and cost.png."""


@dataclasses.dataclass(frozen=True)
class Point:
    """A program to look at: `value` of the option `axis`, on `devices` devices."""

    axis: str
    value: int
    kind: str
    config: StageConfig
    devices: int


def main(options: Options) -> None:
    for name in ("batches", "sizes", "lengths", "steps", "chips", "fsdp"):
        values = getattr(options, name)
        is_rising = list(values) == sorted({value for value in values if value > 0})
        require(is_rising, f"--{name}", "be rising numbers, 1 at least", values)
    files.check_directory(options.output, "--output", names=("cost.json", "cost.png"))

    import jax

    jax.config.update("jax_platforms", "cpu")  # a TPU or GPU at hand has no part in it
    from imagen_jax import chips
    from imagen_jax.config import presets
    from imagen_jax.planning import targets
    from imagen_jax.planning.estimate import estimate

    stages = {stage.name: stage for stage in presets.load_preset(options.preset)}
    config = stages[choice("--stage", options.stage or next(iter(stages)), stages)]
    require(not config.distilled.steps, "--stage", "be one that is not distilled", config.name)
    devices = targets.num_devices(options.topology)
    kind = options.topology.partition(":")[0]
    chip = chips.CHIPS[kind]
    estimated = estimated_points(options, config, devices)
    compiled = compiled_points(options, config, devices, chip)
    options.output.mkdir(parents=True, exist_ok=True)
    result = {"preset": options.preset, "stage": config.name, "topology": options.topology, "chip": chip.name}
    once = functools.cache(estimate)  # the preset itself is a point of each axis
    rows = [row(point, once(point.config, point.kind, devices), chip) for point in estimated]
    result |= {"memory_gib": chip.memory / 2**30, "estimated": rows, "compiled": []}
    save(options.output, result)
    for point, shape in compiled:
        found = compiled_figures(options, point.config, f"{kind}:{shape}")
        if found is not None:
            plan = dataclasses.replace(once(point.config, "train", point.devices), collective_bytes=found["link_bytes"])
            figures = {"collectives": found["collectives"], "peak_gib": found["peak_bytes"] / 2**30}
            result["compiled"].append(row(point, plan, chip) | {"fsdp": point.config.run.fsdp} | figures)
            save(options.output, result)
    print(format_tables(result))


def estimated_points(options: Options, config: StageConfig, devices: int) -> list[Point]:
    """Return the points of each axis, checked."""
    sizes = options.sizes or [config.image_size * halves // 2 for halves in (1, 2, 4, 8)]
    points = []
    for axis in AXES:
        for value in sizes if axis == "sizes" else getattr(options, axis):
            kinds = ["sample"] if axis == "steps" else KINDS
            batch = value if axis == "batches" else options.batch
            changed = varied(config, axis, value)
            points += [checked(axis, value, kind, changed, devices, batch) for kind in kinds]
    return points


def varied(config: StageConfig, axis: str, value: int) -> StageConfig:
    """Return the stage with `value` of `axis`, a name of AXES; a batch is none of the stage's."""
    if axis == "sizes":
        factor = config.low_res_factor if config.is_super_resolution else None
        rule = f"be multiples of {factor}, so that low_res_size is in proportion"
        require(factor is None or value % factor == 0, "--sizes", rule, value)
        low = factor and value * config.low_res_size // config.image_size
        return dataclasses.replace(config, image_size=value, low_res_size=low)
    if axis == "lengths":
        return dataclasses.replace(config, text=dataclasses.replace(config.text, length=value))
    if axis == "steps":
        return dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, steps=value))
    return config


def compiled_points(options: Options, config: StageConfig, devices: int, chip: Any) -> list[tuple[Point, str]]:
    """Return the points to compile and the shapes of their slices, checked; none if nothing can be compiled."""
    if not options.compile:
        return []
    shapes = {math.prod(map(int, shape.split("x"))): shape for shape in chip.shapes}
    points = []
    for fsdp in options.fsdp or (config.run.fsdp,):
        for number in options.chips:
            rule = f"be numbers of chips of {chip.name} slices: {', '.join(map(str, shapes))}"
            require(chip.is_gpu or number in shapes, "--chips", rule, number)
            batch = options.batch * number // devices
            points.append((checked("chips", number, "train", config, number, batch, fsdp), shapes.get(number)))
    if chip.is_gpu or importlib.util.find_spec("libtpu") is None:
        print(f"Nothing is compiled for --chips, which needs {'TPUs' if chip.is_gpu else 'libtpu'}.")
        return []
    return points


def checked(
    axis: str, value: int, kind: str, config: StageConfig, devices: int, batch: int, fsdp: int | None = None
) -> Point:
    """Return a point, or raise a ValueError if its stage is none or does not divide among the devices."""
    from imagen_jax import sharding
    from imagen_jax.planning.estimate import planned

    config = planned(config, kind, batch=batch, fsdp=fsdp, compute_dtype="bfloat16")
    mesh = sharding.abstract_mesh(devices, config.run.fsdp, height=config.run.height)
    sharding.check_batch(batch, config.optim.accumulation if kind == "train" else 1, mesh)
    return Point(axis, value, kind, config, devices)


def compiled_figures(options: Options, config: StageConfig, topology: str) -> dict[str, Any] | None:
    """Compile the train step, or read what was found before; None if it does not fit the chips."""
    from imagen_jax.planning import program as programs
    from imagen_jax.planning import targets

    made_by = f"{config!r} {[metadata.version(name) for name in ('jax', 'libtpu')]}"
    digest = hashlib.sha256(made_by.encode()).hexdigest()[:12]
    path = options.output / f"{config.name}-{topology.replace(':', '-')}-{digest}.json"
    if not path.exists():
        try:
            found = programs.compile_for(config, "train", targets.target(topology))
        except programs.DoesNotFit as error:
            print(f"{topology} is left out: {error}")
            return None
        print(f"compiled for {topology} with fsdp {config.run.fsdp} in {found.seconds:.0f} s", flush=True)
        files.write_json(path, dataclasses.asdict(found) | {"link_bytes": found.link_bytes})
    return json.loads(path.read_text())


def row(point: Point, plan: Any, chip: Any) -> dict[str, Any]:
    """Return the figures of a point."""
    images, seconds = point.config.optim.batch_size, plan.seconds(chip)
    return {name: getattr(point, name) for name in ("axis", "value", "kind")} | {
        "images": images,
        "tflop_an_image": plan.flops * point.devices / images / 1e12,
        "gib_an_image": plan.traffic * point.devices / images / 2**30,
        "peak_gib": plan.peak_bytes / 2**30,
        "seconds": seconds,
        "images_per_second": images / max(seconds.values()),
        "bound": max(seconds, key=seconds.get),
        "links_share": seconds["links"] / (seconds["links"] + max(seconds["compute"], seconds["memory"])),
    }


def save(output: Path, result: dict[str, Any]) -> None:
    """Write cost.json and cost.png, with what has been found so far."""
    files.write_json(output / "cost.json", result, indent=1)
    files.write(output / "cost.png", plot(result))


def plot(result: dict[str, Any]) -> bytes:
    """Return a PNG: time and memory by each axis, and links beside the rest by the number of chips."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, grid = pyplot.subplots(3, 4, figsize=(13, 8.5), layout="constrained")
    figure.suptitle(f"{result['stage']} of {result['preset']} on {result['topology']}, one thing changed at a time")

    def draw(panel: Any, rows: list[dict], heights: list[float], **style: str) -> None:
        values = [each["value"] for each in rows]
        panel.plot(values, heights, marker="o", markersize=4, **style)
        panel.set(xscale="log", yscale="log")
        panel.set_xticks(values, [f"{value}" for value in values])
        panel.set_xticks([], minor=True)
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(ticker.LogFormatter())

    for (i, (axis, label)), (j, (kind, title)) in itertools.product(enumerate(AXES.items()), enumerate(KINDS.items())):
        rows = [each for each in result["estimated"] if (each["axis"], each["kind"]) == (axis, kind)]
        for part, color in PARTS.items() if rows else ():
            heights = [1e6 * each["seconds"][part] / each["images"] for each in rows]
            if any(heights):
                draw(grid[j, i], rows, heights, label=part, color=color)
            grid[j, i].set(title=f"{title}, estimated", xlabel=label, ylabel="µs an image")
        if axis != "steps":
            style = {"color": "tab:green", "linestyle": "-" if kind == "train" else "--"}
            draw(grid[2, i], rows, [each["peak_gib"] for each in rows], label=title, **style)
            grid[2, i].set(title="peak memory, estimated", xlabel=label, ylabel="GiB a chip")
    for panel in grid[2, :3]:
        panel.axhline(result["memory_gib"], color="black", linewidth=0.8, linestyle=":", label="of the chip")
    compiled, seconds, share = result["compiled"], grid[0, 3], grid[2, 3]
    for fsdp, style in zip(sorted({each["fsdp"] for each in compiled}), itertools.cycle(("-", "--", ":", "-."))):
        rows = [each for each in compiled if each["fsdp"] == fsdp]
        for part, color in PARTS.items():
            heights = [1000 * each["seconds"][part] for each in rows]
            draw(seconds, rows, heights, label=f"{part}, fsdp {fsdp}", color=color, linestyle=style)
        heights = [100 * each["links_share"] for each in rows]
        draw(share, rows, heights, label=f"fsdp {fsdp}", color="tab:red", linestyle=style)
    if compiled:
        title = f"train step, {compiled[0]['images'] / compiled[0]['value']:g} images a chip"
        seconds.set(title=title, xlabel="chips", ylabel="ms a step")
        share.set(title="links, compiled", xlabel="chips", ylabel="% of a step", yscale="linear", ylim=(0, None))
    for panel in grid.flat:
        panel.set_visible(bool(panel.lines))
    for panel in (grid[0, 0], grid[2, 0], *([share] if compiled else [])):
        panel.legend(fontsize="small")
    if compiled:
        seconds.legend(fontsize="x-small", ncols=2, loc="center")
    buffer, small = io.BytesIO(), io.BytesIO()
    figure.savefig(buffer, dpi=66)
    pyplot.close(figure)
    Image.open(buffer).convert("RGB").quantize(64).save(small, "PNG", optimize=True)  # a third of the bytes
    return small.getvalue()


def format_tables(result: dict[str, Any]) -> str:
    """Return Markdown tables of all points."""
    lines = [
        f"{result['stage']} of {result['preset']} on {result['topology']}, estimated from shapes:\n",
        "| | | TFLOP an image | GiB of traffic an image | peak, GiB a chip | images/s | bound by |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for each in sorted(result["estimated"], key=lambda each: list(KINDS).index(each["kind"])):
        names = ("tflop_an_image", "gib_an_image", "peak_gib", "images_per_second")
        columns = " | ".join(f"{each[name]:.4g}" for name in names)
        lines.append(f"| {KINDS[each['kind']]}, {AXES[each['axis']]} | {each['value']} | {columns} | {each['bound']} |")
    if result["compiled"]:
        lines += [
            "\nThe train step, compiled; the share is that of links if they do not overlap with anything:\n",
            "| chips | fsdp | collectives, GiB (number) | peak, GiB | links, ms | compute, ms | memory, ms | share |",
            "|---:|---:|---|---:|---:|---:|---:|---:|",
        ]
    for each in result["compiled"]:
        found = ", ".join(f"{name} {size / 2**30:.2f} ({n})" for name, (n, size) in each["collectives"].items())
        parts = " | ".join(f"{1000 * each['seconds'][part]:.3g}" for part in ("links", "compute", "memory"))
        lines.append(
            f"| {each['value']} | {each['fsdp']} | {found} | {each['peak_gib']:.2f} | {parts} | "
            f"{100 * each['links_share']:.1f} % |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    program.run(main, lambda args: parsing.parse(Options, __doc__, args))
