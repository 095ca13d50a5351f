"""The package as a wheel installs it, without a checkout: the command, the presets, all packages."""

import os
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        int(metadata.version("setuptools").partition(".")[0]) < 77, reason="setuptools 77 builds the package"
    ),
]
ROOT = Path(__file__).parent.parent
PRESETS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """run(*command) in an environment that has the wheel, and the dependencies of the one that runs the tests."""
    folder = tmp_path_factory.mktemp("installation")
    for name in ("imagen_jax", "configs"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    pretrained = folder / "source/imagen_jax/pretrained/tiny"
    pretrained.mkdir(parents=True)
    for name in ("config.json", "base.safetensors", "NOTICE"):
        (pretrained / name).write_text("{}")
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    install = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([*install, "--wheel-dir", folder, folder / "source"], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False, symlinks=True)  # the pip of the tests installs into it
    python = folder / "venv/bin/python"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"JAX_PLATFORMS": "cpu", "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"]
    install += ["--disable-pip-version-check", wheel]
    subprocess.run(install, check=True, capture_output=True, env=environment)
    (packages,) = folder.glob("venv/lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(path for path in sys.path if "site-packages" in path))
    shutil.rmtree(folder / "source")

    def call(*command):
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def test_the_command_and_its_presets_are_installed(run):
    assert "  sample " in run("imagen-jax", "--help")
    assert "usage: imagen-jax sample " in run("imagen-jax", "sample", "--help")
    out = run("imagen-jax", "plan", "--preset", "quickstart", "--stage", "base", "--quick")
    assert out.startswith("base (quickstart), train, batch ") and "parameters" in out
    names = [*PRESETS, "base64:300m"]
    code = f"from imagen_jax.config.presets import load_preset; [load_preset(name) for name in {names}]"
    assert run("python", "-c", f"{code}; import imagen_jax; print(imagen_jax.__file__)").count("venv/lib") == 1


def test_pretrained_cascades_are_installed(run):
    code = "from imagen_jax.stage_dir import pretrained; print(*pretrained.directories()['tiny'].iterdir(), sep='\\n')"
    names = {Path(line).name for line in run("python", "-c", code).splitlines()}
    assert names == {"config.json", "base.safetensors", "NOTICE"}


def test_every_package_is_installed(run):
    names = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "imagen_jax").rglob("*.py")}
    code = "import imagen_jax, pathlib; root = pathlib.Path(imagen_jax.__file__).parent.parent; " + (
        "print(*{path.parent.relative_to(root).as_posix() for path in (root / 'imagen_jax').rglob('*.py')})"
    )
    assert set(run("python", "-c", code).split()) == names | {"imagen_jax/configs"}
