"""Every message that the package can raise has the one form `NAME must RULE; got VALUE: FIX.`

The source is read, not run: of each error that is made, the text with `{}` for each value that is put in. The fix may
be missing where the rule says already what to give; and where what was found is the state of a file, a disk or a
process, a clause says it: `--output must be writable; /data is not (Read-only file system): name another.`
`python tests/test_messages.py` prints those of another form.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "imagen_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
FORM = re.compile(r"\S[^\n]* must [^\n]+; [^\n]+\.")
# Calls that build the form out of its parts; (the number of the rule, of the fix) among their arguments.
BUILDERS = {"error": (1, 3), "require": (2, 4)}
# Errors of the user's input. Of another form are those of disks and of training (OSError, FloatingPointError), and
# classes of the package's own that hold a reason for another message, such as Unusable("animation").
ERRORS = {"ValueError", "TypeError", "ChangedError", "DamagedFileError", "UndecodableError"}
# (file, beginning of the message): why the form is not seen in the source.
EXCEPTIONS = {
    ("checks.py", "{}: {}"): "another message of the form, behind the name of a file",
    ("methods.py", "{} must {}"): "another message of the form, with another name",
    ("data/reader.py", "{}, nor can"): "another message of the form, with one clause more",
}


class Message(NamedTuple):
    """A message in the source: its file and line, the class of the error, and its text; None if it is computed."""

    file: str
    line: int
    kind: str
    text: str | None


def text_of(node: ast.expr) -> str | None:
    """The text of a literal, an f-string, or a sum of them, with {} for each value; None for another expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = text_of(node.left), text_of(node.right)
        return None if parts == (None, None) else "".join(part or "{}" for part in parts)
    return None


def name_of(call: ast.Call) -> str:
    """`error` for error(...) and checks.error(...)."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def messages(path: Path) -> Iterator[Message]:
    """Every message of an error that a file makes."""
    file = str(path.relative_to(PACKAGE))
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and node.args and name_of(node) in ERRORS:
            yield Message(file, node.lineno, name_of(node), text_of(node.args[0]))


def rules(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, rule, fix) of every call of a builder whose parts are literals."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and name_of(node) in BUILDERS:
            rule, fix = BUILDERS[name_of(node)]
            given = dict(enumerate(node.args)) | {
                {"rule": rule, "fix": fix}.get(word.arg, word.arg): word.value for word in node.keywords
            }
            parts = (text_of(given[i]) if i in given else None for i in (rule, fix))
            yield node.lineno, *(part or "" for part in parts)


def deviating(path: Path) -> list[Message]:
    """The messages of a file that have another form, without a reason in EXCEPTIONS."""
    return [
        message
        for message in messages(path)
        if message.text is None or not FORM.fullmatch(message.text)
        if not any(
            message.file == file and (message.text or "").startswith(start) for file, start in EXCEPTIONS
        )
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_messages_have_the_one_form(path):
    assert deviating(path) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_parts_fit_into_the_one_form(path):
    """`must` and `got`, the semicolon, the colon and the full stop come from the builder."""
    for line, rule, fix in rules(path):
        assert not re.match(r"(must|is|has) |[A-Z][a-z]+ ", rule) and not rule.endswith("."), (line, rule)
        assert "\n" not in rule + fix and not fix.endswith("."), (line, fix)


def test_exceptions_are_needed():
    for file, start in EXCEPTIONS:
        assert any((each.text or "").startswith(start) for each in messages(PACKAGE / file)), (file, start)


@pytest.mark.parametrize(
    ("code", "is_right"),
    [
        ("raise ValueError(f'--num must be at least 1; got {n}.')", True),
        ("raise ValueError('--mask must have the size of --image; ' + f'got {n}: crop it.')", True),
        ("raise ValueError('num is too small')", False),
        ("raise ValueError('num must be positive, got -1.')", False),
        ("raise ValueError('num must be positive; got -1')", False),
        ("raise ValueError(reason)", False),
    ],
)
def test_the_form_is_recognised(monkeypatch, tmp_path, code, is_right):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "file.py").write_text(code)
    assert (deviating(tmp_path / "file.py") == []) == is_right


if __name__ == "__main__":
    for each in FILES:
        for found in deviating(each):
            print(f"{found.file}:{found.line}: {found.text}")
