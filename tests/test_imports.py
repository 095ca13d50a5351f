"""The layers of the package, held by a walk over its imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "imagen_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
STANDARD = set(sys.stdlib_module_names) | {"__future__"}

# folder or file -> what it may import at module level; own modules by their path below imagen_jax
ALLOWED = {
    "diffusion": {"jax", "numpy", "arrays", "checks", "diffusion"},
    "models": {"jax", "flax", "einops", "arrays", "checks", "structs", "parallel", "models"},
    "structs": {"jax", "flax", "arrays", "checks"},
    "checks": set(),
    "arrays": {"jax", "numpy", "checks"},
    "config": {"checks", "files", "locations"},
    "validation": {"checks", "config", "locations", "models"},
    "presets": {"checks", "config", "locations", "validation"},
    "resize": {"numpy"},
    "inputs": {"jax", "flax", "numpy", "arrays", "checks", "config", "diffusion", "structs"},
    "stage": {
        "jax",
        "flax",
        "numpy",
        "arrays",
        "checks",
        "config",
        "validation",
        "structs",
        "inputs",
        "resize",
        "parallel",
        "diffusion",
        "models",
    },
    "cascade": {
        "jax",
        "numpy",
        "arrays",
        "checks",
        "config",
        "validation",
        "inputs",
        "stage",
        "structs",
        "resize",
        "diffusion",
    },
    "parallel": {"jax", "numpy", "checks"},
    "locations": {"checks"},
    "locks": {"locations"},
    "files": {"locations", "signals"},
    "planning": {"jax", "numpy", "config", "inputs", "parallel", "planning", "stage", "structs", "training"},
    "data": {"numpy", "PIL", "scipy", "files", "locks", "resize", "signals", "data"},
    "signals": set(),
    "text": {
        "jax",
        "flax",
        "numpy",
        "ml_dtypes",
        "checks",
        "config",
        "files",
        "locks",
        "parallel",
        "progress",
        "structs",
        "text",
    },
    "options": {"locations"},
    "progress": {"tqdm"},
    "evaluation": {"jax", "flax", "numpy", "scipy", "PIL", "files", "resize", "data", "text", "evaluation"},
    "generate": {"jax", "numpy", "arrays", "checks", "inputs", "parallel", "cascade", "stage", "structs", "text"},
}


def imported(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if node.module == "imagen_jax":
        return [f"imagen_jax.{alias.name}" for alias in node.names]
    return [node.module]


def imports(path, top_level_only):
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name in imported(node):
                parts = name.split(".")
                yield parts[1] if parts[0] == "imagen_jax" and len(parts) > 1 else parts[0]


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_layers(path):
    found = set(imports(path, top_level_only=True)) - STANDARD
    if room(path) in ALLOWED:
        assert found <= ALLOWED[room(path)]


@pytest.mark.parametrize(
    ("package", "homes"),
    [
        ("orbax", {"training/checkpoint.py"}),
        ("tensorflow", set()),
        ("torch", set()),
        ("tyro", {"cli.py"}),
    ],
)
def test_packages_with_one_home(package, homes):
    users = {str(p.relative_to(PACKAGE)) for p in FILES if package in set(imports(p, top_level_only=False))}
    assert users <= homes


def test_only_parallel_names_meshes():
    words = ("PartitionSpec", "make_mesh(", "jax.pmap", "NamedSharding(")
    users = {
        p.name
        for p in FILES
        if any(word in p.read_text() for word in words) and "make_mesh(config" not in p.read_text()
    }
    assert users - {"generate.py", "estimate.py"} == {"parallel.py"}


def test_nothing_imports_scripts_and_configs_import_config_alone():
    assert not [p for p in FILES if "scripts" in set(imports(p, top_level_only=False))]
    for path in (ROOT / "configs").glob("*.py"):
        assert set(imports(path, top_level_only=False)) - STANDARD <= {"config", "imagen_jax"}


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import imagen_jax", "jax flax numpy tyro orbax grain transformers tqdm dataclasses importlib.metadata"),
        ("from imagen_jax import sample_cascade, Stage, UNet", "orbax grain transformers tensorflow torch tyro"),
        ("from imagen_jax import config, presets, options", "jax flax numpy tyro orbax"),
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
