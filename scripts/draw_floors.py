"""Prints the floors of the package, read off its imports, and draws them.

  python scripts/draw_floors.py --output docs/floors.svg

A room is a folder of imagen_jax/, or a file beside the folders. A file may import from rooms on floors below its own,
and from its own room; the ground floor counts as one room. tests/test_walls.py checks this.
"""

import ast
import dataclasses
import functools
from pathlib import Path

from imagen_jax.cli import parsing, program

PACKAGE = Path(__file__).resolve().parent.parent / "imagen_jax"

# From the ground up.
FLOORS = (
    {
        "arrays", "checks", "chips", "compilation", "grid", "methods", "processes", "progress",
        "registry", "resize", "sharding", "signals", "storage", "structs", "tracing",
    },
    {"data", "diffusion", "models"},
    {"config", "prepare"},
    {"stage", "text"},
    {"sampling", "stage_dir"},
    {"generate", "interop", "training"},
    {"evaluation", "planning"},
    {"cli"},
)  # fmt: skip
GROUND = FLOORS[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    output: Path | None = None
    """File of the drawing, .svg, .png or .pdf; none is drawn without it."""


@functools.cache
def source_files() -> tuple[Path, ...]:
    """Return the files of the package, except its __init__.py, which loads public names when they are first used."""
    return tuple(sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"))


def room_of(path: Path) -> str:
    """Return the room that a file of the package belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module_of(path: Path) -> str:
    """Return the dotted name of a file of the package; a folder's __init__.py has the folder's."""
    parts = ("imagen_jax", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def imported(path: Path) -> tuple[str, ...]:
    """Return the dotted names of all modules that a file imports, at its top and inside functions."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{path} must import by full names; got a relative import in line {node.lineno}.")
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            if name in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
                names.append(node.args[0].value)
    return tuple(names)


def rooms_imported(path: Path) -> set[str]:
    """Return the rooms that a file imports from, its own among them."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("imagen_jax.")} & set().union(*FLOORS)


def files_imported(path: Path) -> set[str]:
    """Return the dotted names of the files of the package that a file imports."""
    modules = {module_of(file) for file in source_files()}
    return {name for name in imported(path) if name in modules} - {module_of(path)}


def floor_of(room: str) -> int:
    """Return the floor of a room, 0 for the ground."""
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def room_imports() -> dict[str, set[str]]:
    """Return for each room the other rooms that it imports from."""
    found: dict[str, set[str]] = {room: set() for rooms in FLOORS for room in rooms}
    for path in source_files():
        found[room_of(path)] |= rooms_imported(path) - {room_of(path)}
    return found


def num_lines(room: str) -> int:
    """Return how many lines the files of a room have."""
    return sum(len(path.read_text().splitlines()) for path in source_files() if room_of(path) == room)


def text() -> str:
    """Return the floors as text, top first: each room, its lines, and the rooms above the ground that it imports."""
    lines, imports = [], room_imports()
    for i in reversed(range(len(FLOORS))):
        for room in sorted(FLOORS[i]):
            above_ground = sorted(imports[room] - GROUND, key=lambda other: (floor_of(other), other))
            lines.append(f"{i}  {room:<12} {num_lines(room):5}  {' '.join(above_ground)}".rstrip())
    return "\n".join(lines)


def draw(file: Path) -> None:
    """Draw the floors: rooms as boxes, an arrow from each room to those that it imports and reaches in no other way."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "floors"  # the same bytes for the same imports
    from matplotlib import pyplot as plt
    from matplotlib.patches import FancyBboxPatch

    figure, axes = plt.subplots(figsize=(10, 8.5))
    axes.set_xlim(0, 10)
    axes.set_ylim(-0.75, len(FLOORS) - 0.3)
    axes.axis("off")
    center = {}
    for i, rooms in enumerate(FLOORS):
        axes.axhspan(i - 0.42, i + 0.42, color="#f3f5f8" if i % 2 else "#e9edf3", zorder=0)
        axes.text(0.1, i, str(i), va="center", color="#8a94a6", fontsize=11)
        shown = sorted(rooms) if i else ["ground"]
        width = 1.7 if i else 9.0
        for k, room in enumerate(shown):
            x = 0.4 + 9.4 * (k + 0.5) / len(shown) + (0.55 * (-1) ** i if i and len(shown) < 3 else 0)  # arrows pass
            center[room] = (x, i)
            box = FancyBboxPatch(
                (x - width / 2, i - 0.24), width, 0.48, boxstyle="round,pad=0.03", fc="white", ec="#45546e", zorder=3
            )
            axes.add_patch(box)
            name = ", ".join(sorted(rooms)) if not i else f"{room}\n{num_lines(room)} lines"
            axes.text(x, i, name, ha="center", va="center", fontsize=7.5 if not i else 9, zorder=4)
    imports = {
        room: {other for other in others - GROUND if floor_of(other) < floor_of(room)}
        for room, others in room_imports().items()
        if room not in GROUND
    }
    for room, others in imports.items():
        for other in others - set().union(*(_reached(imports, between) for between in others)):
            _arrow(axes, center[room], center[other])
        if not others:
            _arrow(axes, center[room], (center[room][0], 0))
    figure.savefig(file, bbox_inches="tight", metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)


def _reached(imports: dict[str, set[str]], room: str) -> set[str]:
    """Return the rooms that a room imports, also through others."""
    found: set[str] = set()
    for other in imports[room]:
        found |= {other} | _reached(imports, other)
    return found


def _arrow(axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    arrow = {"arrowstyle": "-|>", "color": "#7787a3", "lw": 1.0, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (end[0], end[1] + 0.27), (start[0], start[1] - 0.27), arrowprops=arrow, zorder=2)


def main(options: Options) -> None:
    """Print the floors, and draw them if a file is named."""
    print(text())
    if options.output is not None:
        draw(options.output)


if __name__ == "__main__":
    program.run(main, lambda args: parsing.parse(Options, __doc__, args))
