"""Push to and pull from a server on this machine that answers as the Hugging Face hub does."""

import base64
import hashlib
import http.server
import json
import threading

import huggingface_hub
import pytest
from huggingface_hub import constants

from imagen_jax import TextEncoder, load_cascade, save_pretrained
from imagen_jax.stage_dir import exported, hub
from tests.deepfloyd_models import write_pipeline

OPTION = "--push-to-hub"


class Hub(http.server.ThreadingHTTPServer):
    """Repositories in memory: name -> file -> bytes; writing needs the token "secret"."""

    def __init__(self):
        self.repos: dict[str, dict[str, bytes]] = {}
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(http.server.BaseHTTPRequestHandler):
    """The calls of the hub's client that create a repository, commit to it, list it and fetch its files."""

    def log_message(self, *_):
        pass

    def answer(self, content, status=200, **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def missing(self, code):
        self.answer({"error": code}, 404, **{"X-Error-Code": code})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts == ["api", "validate-yaml"]:
            return self.answer({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != "Bearer secret":
            return self.answer({"error": "Invalid credentials"}, 401)
        if parts[:3] == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.server.repos.setdefault(name, {})
            return self.answer({"url": f"{constants.ENDPOINT}/{name}", "id": name})
        files = self.server.repos.get("/".join(parts[2:4]))
        if files is None:
            return self.missing("RepoNotFound")
        if parts[4] == "preupload":
            sent = json.loads(body)["files"]
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            return self.answer({"files": [{"path": file["path"], **mode} for file in sent]})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del files[line["value"]["path"]]
        address = f"{constants.ENDPOINT}/{'/'.join(parts[2:4])}/commit/{'1' * 40}"
        return self.answer({"commitUrl": address, "commitOid": "1" * 40, "success": True})

    def do_GET(self):
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[0] == "api":
            name, files = "/".join(parts[2:4]), self.server.repos.get("/".join(parts[2:4]))
            if files is None:
                return self.missing("RepoNotFound")
            if name.startswith("gated/"):
                return self.answer({"error": "gated"}, 403, **{"X-Error-Code": "GatedRepo"})
            if parts[4:5] == ["tree"]:
                return self.answer([{"type": "file", "path": p, "size": len(c), "oid": "1"} for p, c in files.items()])
            if parts[4:5] == ["revision"] and parts[5] not in ("main", "1" * 40):
                return self.missing("RevisionNotFound")
            siblings = [{"rfilename": path} for path in files]
            return self.answer({"id": name, "sha": "1" * 40, "siblings": siblings, "private": False})
        content = self.server.repos["/".join(parts[:2])]["/".join(parts[4:])]
        etag = hashlib.sha256(content).hexdigest()
        return self.answer(content, **{"ETag": f'"{etag}"', "X-Repo-Commit": "1" * 40})

    do_HEAD = do_GET


@pytest.fixture
def server(monkeypatch, tmp_path):
    hub.download.cache_clear()
    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    huggingface_hub.close_session()  # which keeps the proxies of the environment
    yield server
    server.shutdown()
    server.server_close()
    huggingface_hub.close_session()


def test_a_pushed_cascade_is_pulled_again(server, tiny_stages, tmp_path, monkeypatch):
    save_pretrained(tiny_stages[:1], tmp_path / "tiny", notice="By A.")
    (tmp_path / "tiny/sampling.json").write_text("{}")
    (tmp_path / "tiny/.hidden").write_text("not to be shared")
    hub.check_name("me/tiny", OPTION)
    hub.create("me/tiny", OPTION)
    server.repos["me/tiny"]["old.safetensors"] = b"of a stage that is gone"
    assert hub.push(tmp_path / "tiny", "me/tiny", OPTION).endswith(f"/me/tiny/commit/{'1' * 40}")
    files = server.repos["me/tiny"]
    assert set(files) == {"config.json", "base.safetensors", "README.md", "NOTICE", "sampling.json"}
    assert files["base.safetensors"] == (tmp_path / "tiny/base.safetensors").read_bytes()

    (stage,) = load_cascade("hf://me/tiny")
    assert stage.config == tiny_stages[0].config
    files["base.safetensors"] = files["base.safetensors"][:-1] + bytes([files["base.safetensors"][-1] ^ 1])
    hub.download.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "other"))
    with pytest.raises(ValueError, match="base.safetensors must have sha256 "):
        load_cascade(f"hf://me/tiny@{'1' * 40}")


def test_what_the_hub_refuses_is_one_line(server, tiny_stages, tmp_path, monkeypatch):
    save_pretrained(tiny_stages[:1], tmp_path / "tiny")
    server.repos["me/other"] = {"config.json": b"{}"}

    def failing(call, *arguments):
        with pytest.raises(ValueError) as error:
            call(*arguments)
        assert "\n" not in str(error.value)
        return str(error.value)

    for place, words in (
        ("hf://me/none", "workdir must be a cascade on the Hugging Face hub; got hf://me/none, .*404): correct"),
        ("hf://me/other@v2", "got hf://me/other@v2, which it does not give (no such .*, status 404)"),
        ("hf://me/other", "workdir must be a cascade that imagen-jax export wrote; got 'hf://me/other'"),
        ("hf://me", "workdir must be hf://OWNER/NAME or hf://OWNER/NAME@REVISION; got 'hf://me'"),
        ("hf://me/../x", "workdir must be hf://OWNER/NAME"),
    ):
        message = failing(load_cascade, place)
        assert all(part in message for part in words.split(".*")), message
    assert "(no such repository, revision or file, status 404)" in failing(hub.push, tmp_path / "tiny", "me/x", OPTION)
    monkeypatch.setenv("HF_TOKEN", "wrong")
    for call, arguments in ((hub.create, ("me/tiny", OPTION)), (hub.push, (tmp_path / "tiny", "me/other", OPTION))):
        message = failing(call, *arguments)
        assert message.startswith("--push-to-hub must be a repository to write to; got me/")
        assert message.endswith("(not logged in, status 401): correct the name, or log in with hf auth login.")
    assert "be OWNER/NAME, a repository" in failing(hub.check_name, "tiny", OPTION)
    server.shutdown()
    server.server_close()
    assert "check the network" in failing(load_cascade, "hf://me/tiny")
    assert failing(hub.create, "me/tiny", OPTION).endswith("): check the network.")
    assert exported.read(tmp_path / "tiny") is not None


def test_pushing_needs_a_token(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="^--push-to-hub must be used with a token .*; got none: run hf auth login"):
        hub.check_name("me/tiny", OPTION)


@pytest.mark.slow
def test_pipelines_are_pulled_in_float16_without_pickles(server, goldens, tmp_path):
    """The hub has their weights several times; a licence that is not accepted yet is named."""
    directory, files = write_pipeline(tmp_path / "one", goldens, "stage_1"), {}
    for file in directory.rglob("*"):
        if file.is_file():
            files[file.relative_to(directory).as_posix()] = file.read_bytes()
    for name in ("unet/diffusion_pytorch_model", "text_encoder/model"):
        content = files[f"{name}.safetensors"]
        files |= {f"{name}.fp16.safetensors": content, f"{name}.safetensors": b"float32", f"{name}.bin": b"pickle"}
    server.repos |= {"me/IF-I": files, "gated/IF-I": files}
    (stage,) = load_cascade("hf://me/IF-I")
    assert stage.config.network == load_cascade(directory)[0].config.network
    assert TextEncoder.from_config(stage.config.text).encode(["a cat"]).mask.all()
    pulled = {path.name for path in hub.download("hf://me/IF-I", "workdir").rglob("*.*")}
    assert "diffusion_pytorch_model.fp16.safetensors" in pulled
    assert not pulled & {"diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "model.safetensors"}
    with pytest.raises(ValueError, match="accept its licence at https://huggingface.co/gated/IF-I, and log in"):
        load_cascade("hf://gated/IF-I")
