"""Modules that are imported before a command line is parsed."""

import importlib.metadata
import sys

import pytest

from imagen_jax.cli import plugins, program


@pytest.fixture
def run(monkeypatch, capsys):
    """run(plugins) -> stderr of a command that does nothing, with IMAGEN_JAX_PLUGINS set."""

    def call(names):
        monkeypatch.setenv(plugins.VARIABLE, names)
        monkeypatch.setattr(sys, "argv", ["plan.py"])
        with pytest.raises(SystemExit) as stop:
            program.run(lambda _: 0, lambda args: None)
        err = capsys.readouterr().err
        assert stop.value.code == (2 if err else 0)
        return err

    return call


def test_files_and_modules_are_imported_once(run, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "imported", [], raising=False)
    for name in ("first_plugin", "second_plugin"):
        (tmp_path / f"{name}.py").write_text(f"import sys\nsys.imported.append({name!r})\n")
    for _ in range(2):
        assert run(f"{tmp_path}/first_plugin.py, second_plugin,") == ""
    assert sys.imported == ["first_plugin", "second_plugin"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "FileNotFoundError: "),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def", "SyntaxError: "),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_one_line(run, tmp_path, content, reason):
    file = tmp_path / "broken.py"
    if content is not None:
        file.write_text(content)
    err = run(str(file))
    assert err.startswith("plan.py: IMAGEN_JAX_PLUGINS must name modules or .py files") and err.count("\n") == 1
    assert str(file) in err and reason in err
    assert "ModuleNotFoundError: No module named 'no_such_plugin'" in run("no_such_plugin")


@pytest.mark.parametrize(("module", "works"), [("json", True), ("no_such_module", False)])
def test_entry_points_of_installed_packages_are_imported(run, monkeypatch, module, works):
    entry = importlib.metadata.EntryPoint("own", module, plugins.GROUP)
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: (entry,) if group == plugins.GROUP else ()
    )
    err = run("")
    assert (err == "") if works else ("the plugin no_such_module of" in err and err.count("\n") == 1)
