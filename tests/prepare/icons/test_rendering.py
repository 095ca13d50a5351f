import sys
from pathlib import Path

import numpy as np
import pytest

from imagen_jax.prepare.icons import rendering
from imagen_jax.prepare.quarantine import Unusable

BOX = (0, 0, 16, 16)
RED = '<rect width="8" height="16" fill="#f00"/>'


@pytest.fixture(scope="module")
def render():
    with rendering.Renderer(32, "#00ff00") as renderer:
        yield renderer


def test_pictures_are_on_the_background(render):
    picture = render(rendering.document(RED, BOX))
    assert picture.shape == (32, 32, 3) and picture.dtype == np.uint8
    assert (picture[:, :16] == (255, 0, 0)).all() and (picture[:, 16:] == (0, 255, 0)).all()


def test_pictures_that_are_not_square_are_in_the_middle(render):
    picture = render(rendering.document('<rect width="16" height="8" fill="#f00"/>', (0, 0, 16, 8)))
    assert (picture[8:24] == (255, 0, 0)).all()
    assert (picture[:8] == (0, 255, 0)).all() and (picture[24:] == (0, 255, 0)).all()
    moved = render(
        rendering.document('<rect x="4" y="-4" width="16" height="8" fill="#f00"/>', (4, -4, 16, 8))
    )
    assert np.array_equal(moved, picture)


@pytest.mark.parametrize(
    "body, reason, detail",
    [
        ("<rect", "undecodable", "not well-formed"),
        (RED + "</svg><svg>", "undecodable", "not well-formed"),
        ("&bomb;", "undecodable", "not well-formed"),
        ('<!DOCTYPE svg [<!ENTITY a "b">]>', "undecodable", "entities"),
        ('<image href="/etc/passwd"/>', "undecodable", "<image>"),
        ("<text>tiger</text>", "undecodable", "<text>"),
        ("<style>@import 'x'</style>", "undecodable", "<style>"),
        ('<use xlink:href="file:///etc/x.svg#a"/>', "undecodable", "outside: file:"),
        ('<use href=" https://x.example/a.svg"/>', "undecodable", "outside"),
        ("<rect fill=\"url( 'http://x.example/#a')\"/>", "undecodable", "outside"),
        ('<rect style="fill:URL(x.svg#a)"/>', "undecodable", "outside"),
        ("<g/>" * (rendering.MAX_ELEMENTS + 1), "too large", "elements"),
    ],
)
def test_hostile_documents_are_refused(body, reason, detail):
    with pytest.raises(Unusable) as caught:
        rendering.document(body, BOX)
    assert caught.value.reason == reason and detail in caught.value.detail


def test_references_within_the_document_are_followed(render):
    gradient = '<linearGradient id="a"><stop stop-color="#f00"/></linearGradient>'
    body = f'{gradient}<rect id="b" width="8" height="16" fill="url(#a)"/><use xlink:href="#b" x="8"/>'
    assert (render(rendering.document(body, BOX)) == (255, 0, 0)).all()


@pytest.mark.parametrize("body", ["<g/>", '<rect width="16" height="16" fill="#00ff00"/>'])
def test_pictures_of_nothing_are_refused(render, body):
    with pytest.raises(Unusable, match="no picture"):
        render(rendering.document(body, BOX))


NESTED = '<g id="g0"><circle r="3"/></g>' + "".join(
    f'<g id="g{level}">' + f'<use xlink:href="#g{level - 1}"/>' * 10 + "</g>" for level in range(1, 10)
)
NOISE = (
    '<filter id="f"><feTurbulence baseFrequency="0.5" numOctaves="100000000"/></filter>'
    '<rect width="16" height="16" filter="url(#f)"/>'
)


@pytest.mark.parametrize(
    "body, message",
    [
        (NESTED, "limit"),  # 10 ** 9 circles
        (NOISE, "too large: more than 0 s to render"),
        ("<g>" * 15000 + RED + "</g>" * 15000, "undecodable|too large"),
    ],
)
def test_what_takes_too_much_is_refused_and_the_next_one_is_rendered(monkeypatch, body, message):
    monkeypatch.setattr(rendering, "SECONDS", 0)  # rounded up to the next whole second
    with rendering.Renderer(32, "#ffffff") as render:
        with pytest.raises(Unusable, match=message):
            render(rendering.document(body, BOX))
        assert render(rendering.document(RED, BOX)).shape == (32, 32, 3)


def test_memory_is_limited(monkeypatch):
    monkeypatch.setattr(rendering, "MEMORY", 2**28)
    with (
        rendering.Renderer(2**14, "#ffffff") as render,
        pytest.raises(Unusable, match="too large|undecodable"),
    ):
        render(rendering.document(RED, BOX))
    with rendering.Renderer(16, "#ffffff") as render:
        assert render(rendering.document(RED, BOX)).shape == (16, 16, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc")
def test_a_preloaded_allocator_does_not_take_its_address_space(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "/nowhere/libmalloc.so")
    with rendering.Renderer(16, "#ffffff") as render:
        render(rendering.document(RED, BOX))
        environment = Path(f"/proc/{render._process.pid}/environ").read_bytes().split(b"\0")
    assert environment != [b""]
    assert not any(line.startswith(b"LD_PRELOAD=") for line in environment)
