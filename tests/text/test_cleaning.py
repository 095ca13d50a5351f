import pathlib
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagen_jax.text.cleaning import clean
from imagen_jax.text.encoder import TextEncoder

TINY = pathlib.Path(__file__).parents[1] / "goldens" / "tiny_bert"


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("a red cat", "a red cat"),
        ("caf\u00c3\u00a9 &amp;amp; bar", "caf\u00e9 & bar"),
        ("l&#39;\u00e9t\u00e9 &eacute;", "l'\u00e9t\u00e9 \u00e9"),
        ("\u201cquoted\u201d \ufb01ne \uff26\uff35\uff2c\uff2c", '"quoted" fine FULL'),
        ("see https://example.com/a?b=1&amp;c=2 now", "see now"),
        ("WWW.shop.com: red shoes www.x.de", "red shoes"),
        ("<p>a <b>red</b><br/>cat</p> <!-- ad -->", "a red cat"),
        ("&lt;br&gt;a cat&lt;/br&gt;", "a cat"),
        ("<person> and 3 < 4 > 2, I <3 it", "<person> and 3 < 4 > 2, I <3 it"),
        ("  two\u3000spaces\n\there\u00a0", "two spaces here"),
        ("\U0001f469\u200d\U0001f33e at dusk", "\U0001f469\u200d\U0001f33e at dusk"),
        ("http://only.a/link", ""),
        ("a cat (https://x.y/z) sits", "a cat ( ) sits"),
        ("", ""),
    ],
)
def test_repairs(caption, cleaned):
    assert clean(caption) == cleaned


@pytest.mark.slow
@given(
    st.text()
    | st.lists(st.sampled_from(["&", "amp;", "<", "b", ">", "/", "lt;", " ", "www.", "x", "\u00c3"])).map(
        "".join
    )
)
def test_cleaning_twice_is_cleaning_once(caption):
    once = clean(caption)
    assert clean(once) == once


@pytest.mark.parametrize("hostile", ["<!--", "&amp;", "amp;", "<a ", "www."])
def test_hostile_captions_take_no_time(hostile):
    start = time.perf_counter()
    clean("&" + hostile * 100_000)
    assert time.perf_counter() - start < 10


def test_an_encoder_cleans_only_when_asked():
    dirty, clean_ = "a&nbsp;red &amp;lt;b&amp;gt;cat https://cat.com", "a red cat"
    encoder = TextEncoder.from_pretrained(TINY, clean_captions=True)
    plain = TextEncoder.from_pretrained(TINY)
    assert encoder.token_ids([dirty]) == plain.token_ids([clean_]) != plain.token_ids([dirty])
    np.testing.assert_array_equal(encoder.encode([dirty]).embeddings, plain.encode([clean_]).embeddings)
    assert encoder.fingerprint != plain.fingerprint
    long = TextEncoder.from_pretrained(TINY, clean_captions=True, max_length=5)
    with pytest.warns(UserWarning, match="cut to the limit of 5"):
        assert long.tokenize([f"{dirty} cat dog"])[0].tolist()[0][:5] == plain.tokenize(["a red cat"])[
            0
        ].tolist()[0][:4] + [3]
