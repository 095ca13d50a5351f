import gzip
import io
import tarfile

import pytest

from imagen_jax.prepare.icons import packages


def archive(path, members):
    """Write a .tgz with members {name: bytes, or a TarInfo}."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
            else:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def link(name, target):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member


def test_a_directory_and_its_archive_are_equal(tmp_path):
    folder = tmp_path / "set"
    (folder / "en").mkdir(parents=True)
    (folder / "icons.json").write_text('{"a": 1}')
    (folder / "en" / "data.json").write_text("[2]")
    packed = archive(
        tmp_path / "set.tgz",
        {"package/icons.json": b'{"a": 1}', "package/en/data.json": b"[2]", "package/x.js": b"x"},
    )
    wanted = ("icons.json", "en/data.json", "none.json")
    for path in (folder, packed):
        assert packages.read("--icons", path, wanted) == {"icons.json": {"a": 1}, "en/data.json": [2]}


def test_hostile_members_are_never_read(tmp_path):
    (tmp_path / "secret.json").write_text('"secret"')
    members = {
        "package/icons.json": link("package/icons.json", str(tmp_path / "secret.json")),
        "package/../../info.json": b"1",
        "/package/chars.json": b"2",
        "other/package.json": b"3",
    }
    before = set(tmp_path.rglob("*"))
    path = archive(tmp_path / "bad.tgz", members)
    wanted = ("icons.json", "info.json", "chars.json", "package.json")
    assert packages.read("--icons", path, wanted) == {}
    assert set(tmp_path.rglob("*")) == before | {path}


@pytest.mark.parametrize(
    "damage", ["cut", "flipped", "no gzip", "no tar", "not JSON", "too deep", "not UTF-8"]
)
def test_damaged_packages_are_refused(tmp_path, damage):
    content = {"not JSON": b"{", "too deep": b"[" * 10**5, "not UTF-8": b'"\xff"'}.get(
        damage, b'{"a": 1}' * 1
    )
    path = archive(tmp_path / "set.tgz", {"package/icons.json": content})
    data = path.read_bytes()
    if damage == "cut":
        data = data[:-12]
    elif damage == "flipped":
        data = data[:40] + bytes([data[40] ^ 255]) + data[41:]
    elif damage == "no gzip":
        data = b"PK\3\4" + data
    elif damage == "no tar":
        data = gzip.compress(b"hello" * 1000)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="--icons must be a package as npm publishes it .*set.tgz.*npm pack"):
        packages.read("--icons", path, ["icons.json"])


def test_packages_that_unpack_to_too_much_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "MAX_UNPACKED", 2**20)
    path = tmp_path / "bomb.tgz"
    path.write_bytes(gzip.compress(bytes(2**22)))
    with pytest.raises(ValueError, match="more than 1048576 bytes unpacked"):
        packages.read("--icons", path, ["icons.json"])
    monkeypatch.setattr(packages, "MAX_FILE", 10)
    path = archive(tmp_path / "large.tgz", {"package/icons.json": b'"0123456789"'})
    with pytest.raises(ValueError, match="icons.json has 12 bytes, more than 10"):
        packages.read("--icons", path, ["icons.json"])


def test_missing_packages_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="--icons must be a .tgz file or a directory; got .*none, which does not"
    ):
        packages.read("--icons", tmp_path / "none", ["icons.json"])
