"""The walls of the package: which room may import which, held by a walk over all imports, lazy ones too.

A room is a folder of the package, or a file beside the folders. scripts/draw_floors.py has the floors, prints
and draws them. The ground floor counts as one room.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import draw_floors  # noqa: E402
from draw_floors import (  # noqa: E402
    FLOORS,
    GROUND,
    PACKAGE,
    files_imported,
    floor_of,
    imported,
    module_of,
    room_of,
    rooms_imported,
)

FILES = draw_floors.source_files()
# (file, room that it imports although the wall forbids it): the reason.
EXCEPTIONS: dict[tuple[str, str], str] = {}
# Packages that only these rooms may import; all others may be imported anywhere.
HOMES = {
    "orbax": {"stage_dir", "processes"},  # processes: the barrier alone
    "tyro": {"cli"},
    "grain": {"data"},
    "transformers": {"text"},
    "pyarrow": {"prepare"},
    "resvg_py": {"prepare"},
    "matplotlib": {"evaluation", "cli"},
    "tensorflow": set(),
    "torch": set(),
    "jax._src": set(),
}


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Circles of any length in a graph, each once."""
    found, done = [], set()

    def visit(node: str, path: list[str]) -> None:
        if node in path:
            found.append([*path[path.index(node) :], node])
            return
        if node in done:
            return
        for after in sorted(edges.get(node, ())):
            visit(after, [*path, node])
        done.add(node)

    for node in sorted(edges):
        visit(node, [])
    return found


def test_every_room_stands_on_one_floor():
    rooms = {room_of(path) for path in FILES} 
    standing = [room for rooms_of_floor in FLOORS for room in rooms_of_floor]
    assert sorted(standing) == sorted(rooms)
    assert len(FLOORS) <= 8


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_import_goes_up(path):
    own = room_of(path)
    for room in rooms_imported(path) - {own}:
        is_ground = own in GROUND and room in GROUND
        is_excepted = (str(path.relative_to(PACKAGE)), room) in EXCEPTIONS
        assert floor_of(room) < floor_of(own) or is_ground or is_excepted, f"{own} imports {room}"


def test_exceptions_are_needed():
    for file, room in EXCEPTIONS:
        assert room in rooms_imported(PACKAGE / file)


def test_no_circle_among_files():
    edges = {module_of(path): files_imported(path) for path in FILES}
    # A package's __init__ names what is inside; a file inside does not depend on it by that.
    inits = {module_of(path) for path in FILES if path.name == "__init__.py"}
    edges = {module: targets - inits for module, targets in edges.items() if module not in inits}
    assert circles(edges) == []


def test_circles_of_any_length_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": {"b"}}) == [["b", "c", "d", "b"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_lazy_imports_are_seen(tmp_path):
    file = tmp_path / "lazy.py"
    file.write_text("def f():\n    from imagen_jax import cli\n    importlib.import_module('imagen_jax.training')\n")
    assert {"imagen_jax.cli", "imagen_jax.training"} <= set(imported(file))


@pytest.mark.parametrize("package", HOMES)
def test_packages_with_one_home(package):
    within = (package, package + ".")
    users = {room_of(p) for p in FILES if any(name == within[0] or name.startswith(within[1]) for name in imported(p))}
    assert users <= HOMES[package]


def test_sharding_imports_jax_alone_and_is_the_only_one_that_names_meshes():
    own = {name.split(".")[0] for name in imported(PACKAGE / "sharding.py")} - set(sys.stdlib_module_names)
    assert own == {"jax", "numpy"}
    words = ("PartitionSpec", "jax.make_mesh(", "NamedSharding(")
    users = {str(p.relative_to(PACKAGE)) for p in FILES if any(word in p.read_text() for word in words)}
    assert users == {"sharding.py"}


def test_networks_import_little():
    names = {name for path in FILES if room_of(path) == "models" for name in imported(path)}
    others = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert others == {"jax", "flax", "einops", "imagen_jax"}
    rooms = {room for path in FILES if room_of(path) == "models" for room in rooms_imported(path)}
    assert rooms <= {"models", "arrays", "checks", "registry", "structs", "sharding"}


def test_nothing_imports_scripts_and_presets_import_config_alone():
    assert not [p for p in FILES if "scripts" in {name.split(".")[0] for name in imported(p)}]
    for path in (ROOT / "configs").glob("*.py"):
        own = {name for name in imported(path) if name.split(".")[0] not in sys.stdlib_module_names}
        assert all(name.startswith("imagen_jax.config") for name in own)


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import imagen_jax", "jax flax numpy tyro orbax grain transformers tqdm dataclasses importlib.metadata"),
        ("from imagen_jax import sample_cascade, Stage, UNet", "orbax grain transformers tensorflow torch tyro"),
    ],
)
def test_importing_the_package_is_light(code, absent):
    code = f"import sys; {code}; print([name for name in {absent.split()} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "[]\n"


def test_public_names():
    import imagen_jax

    assert set(imagen_jax.__all__) == set(imagen_jax._HOMES) <= set(dir(imagen_jax))
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    shown = {alias.name: node.module for node in checked.body for alias in node.names}
    assert shown == {name: f"imagen_jax.{home}" for name, home in imagen_jax._HOMES.items()}
    assert imagen_jax.config.StageConfig  # modules are loaded when they are asked for
    for name in imagen_jax.__all__:
        assert getattr(imagen_jax, name).__doc__
    with pytest.raises(AttributeError, match="Imagen"):
        imagen_jax.Imagen  # noqa: B018


def test_floors_are_printed_and_drawn(tmp_path):
    shown = draw_floors.text().splitlines()
    print("\n".join(shown))
    assert [line.split()[1] for line in shown] == [room for rooms in FLOORS[::-1] for room in sorted(rooms)]
    draw_floors.draw(tmp_path / "floors.svg")
    drawn = (tmp_path / "floors.svg").read_text()
    assert all(f"<!-- {room}" in drawn for rooms in FLOORS[1:] for room in rooms), drawn[:500]
