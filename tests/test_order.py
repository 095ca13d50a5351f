"""tests/ mirrors the package: one test file for each source file, named after it.

A package may have one too, test_PACKAGE.py beside its folder, of what its files have in common: its samplers, its
commands. What several test files share is in conftest.py of their folder, or in a file that is not called test_*.

`python tests/test_order.py` prints the source files without one, and the test files that are named after none.
"""

from pathlib import Path

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "imagen_jax"
# Source files that the test file of another covers: (the test file, the reason).
TOGETHER = {
    "cli/sample.py": ("scripts/test_sampling_journey.py", "what sample.py draws, sweep.py and evaluate.py measure"),
    "cli/sweep.py": ("scripts/test_sampling_journey.py", "on the cascade that the tests of sample.py compile"),
    "cli/evaluate.py": ("scripts/test_sampling_journey.py", "on the cascade that the tests of sample.py compile"),
    "cli/recogniser.py": ("evaluation/test_recogniser_training.py", "on the pictures and the recogniser of its tests"),
    "cli/export.py": ("scripts/test_sampling_journey.py", "what it writes, sample.py draws from"),
    "generate/png_text.py": ("generate/test_records.py", "every kind of damage is tried on the PNG of a record"),
    "prepare/icons/renderer.py": ("prepare/icons/test_rendering.py", "the process that rendering.py starts"),
    "sampling/fitting.py": ("data/test_opening.py", "pictures of every kind are fitted as sample.py does"),
    "structs.py": ("test_stage.py", "plain data, used by every test of a stage"),
    "checks.py": ("test_wrong_arguments.py", "a check is seen in the message to the caller"),
    "arrays.py": ("test_wrong_arguments.py", "a check is seen in the message to the caller"),
}
# Test files of several source files at once, or of the repository: the reason.
OF_SEVERAL = {
    "cli/test_hostile_command_lines.py": "all commands with random options",
    "scripts/test_deepfloyd_journey.py": "commands on pipelines of DeepFloyd IF",
    "test_benchmarks.py": "benchmarks/",
    "test_docs.py": "README and docs/",
    "test_installation.py": "the wheel",
    "test_messages.py": "all messages",
    "test_order.py": "tests/ themselves",
    "test_walls.py": "all imports",
    "test_wrong_arguments.py": "all public functions with wrong arguments",
    "training/test_buckets.py": "a run whose directory is a bucket",
    "training/test_many_processes.py": "runs of several processes",
}


def sources() -> list[str]:
    """All files of the package, such as "data/colors.py"; an __init__.py only names what is beside it."""
    found = (path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py")))
    return [str(path) for path in found if path.name != "__init__.py"]


def own_test(source: str) -> Path:
    return TESTS / Path(source).with_name(f"test_{Path(source).name}")


def packages() -> list[str]:
    """All folders of the package, as if each were a file, such as "cli.py"."""
    return [f"{path.relative_to(PACKAGE)}.py" for path in sorted(PACKAGE.rglob("*")) if (path / "__init__.py").exists()]


def without_test() -> list[str]:
    """Source files that have neither a test file of their own nor a line in TOGETHER."""
    return [
        source
        for source in sources()
        if not own_test(source).exists() and not any(source.startswith(start) for start in TOGETHER)
    ]


def of_no_source() -> list[str]:
    """Test files that are named after no source file, nor explained."""
    own = {own_test(source) for source in sources() + packages()}
    explained = {TESTS / name for name, _ in TOGETHER.values()} | {TESTS / name for name in OF_SEVERAL}
    return [str(path.relative_to(TESTS)) for path in sorted(TESTS.rglob("test_*.py")) if path not in own | explained]


def test_every_source_file_has_a_test_file():
    assert without_test() == []


def test_every_test_file_is_named_after_a_source_file():
    assert of_no_source() == []


def test_reasons_are_of_files_that_exist():
    for start, (name, _) in TOGETHER.items():
        assert any(source.startswith(start) for source in sources()), start
        assert (TESTS / name).exists(), name
    for name in OF_SEVERAL:
        assert (TESTS / name).exists(), name


if __name__ == "__main__":
    print("without a test file:", *without_test(), sep="\n  ")
    print("named after no source file:", *of_no_source(), sep="\n  ")
