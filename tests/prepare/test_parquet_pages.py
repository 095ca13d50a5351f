"""Pages of a table are decompressed within limits, by sizes that agree with what Arrow reads."""


import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagen_jax.prepare import parquet, parquet_pages, text_files
from imagen_jax.prepare.limits import Limits
from tests.prepare.conftest import png, prepared

LIMITS = Limits(image_bytes=500, caption_bytes=20, captions=3, page_bytes=10_000)
TEXT = 200  # bytes of a file, line or field


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(text_files, "MAX_BYTES", TEXT)


# ---- parquet ----


def text(*values):
    return pa.array(values)


ONE = [png(0)] * 3
PARQUET = {
    "one long in a dictionary": (
        {"image": ONE, "caption": text("b", "a" * 21, "c").dictionary_encode()}, ["b", "c"], {1: "caption too long"}
    ),
    "one long": ({"image": ONE, "caption": text("b", "a" * 21, "c")}, ["b", "c"], {1: "caption too long"}),
    "bytes": ({"image": ONE, "caption": text("b", "é" * 11, "c")}, ["b", "c"], {1: "caption too long"}),
    "many": ({"image": ONE, "caption": [["b"], list("abcd"), ["c"]]}, ["b", "c"], {1: "too many captions"}),
    "the same": ({"image": ONE, "caption": [["b"], ["a"] * 9, ["c"]]}, ["b", "a", "c"], {}),
    "a large picture": ({"image": [ONE[0], b"x" * 501, ONE[0]], "caption": list("bac")}, ["b", "c"], {1: "too large"}),
    "a bomb of a caption": (
        {"image": ONE, "caption": text(*["a" * 3000] * 3).dictionary_encode()}, [], {0: "too large"}
    ),
    "texts": ({"image": ONE[:1], "caption": [["a"] * 300]}, [], {0: "too large"}),
    "a bomb of a picture": ({"image": [bytes(10_000)], "caption": ["a"]}, [], {0: "too large"}),
    "one for all rows": ({"image": [bytes(2000)] * 3, "caption": ["a"] * 3}, [], {0: "too large"}),
    "many in a page": ({"image": [png(i) for i in range(40)], "caption": ["b"] * 40}, ["b"] * 40, {}),
    "a dictionary of pictures": (
        {"image": pa.array([bytes(6000)] * 3).dictionary_encode(), "caption": list("abc")}, [], {0: "too large"}
    ),
    "rows": ({"image": pa.nulls(60, pa.binary()), "caption": ["a"] * 60}, [], {0: "too large"}),
}  # fmt: skip


@pytest.mark.parametrize("name", PARQUET)
def test_row_groups_are_read_within_limits(tmp_path, monkeypatch, name):
    for limit, value in (
        ("MAX_ROWS", 50),
        ("MAX_TEXTS", 200),
        ("TEXT_BYTES", 2000),
        ("DICTIONARY_BYTES", 5000),
    ):
        monkeypatch.setattr(parquet, limit, value)
    columns, expected, reasons = PARQUET[name]
    pq.write_table(pa.table(columns), tmp_path / "x.parquet", compression="zstd")
    pq.write_table(pa.table({"image": ONE[:1], "caption": ["last"]}), tmp_path / "y.parquet")
    left_out = {f"x.parquet:{row}": reason for row, reason in reasons.items()}
    assert prepared(tmp_path, limits=LIMITS) == ([*expected, "last"], left_out)


@pytest.mark.parametrize(
    "options", [{}, {"data_page_version": "2.0"}, {"use_dictionary": False, "compression": "none"}]
)
def test_sizes_of_pages_are_what_arrow_reads(tmp_path, options):
    rng = np.random.default_rng(0)
    images = [rng.bytes(1000) for _ in range(50)]
    captions = [["a" * i] * (i % 4) or None for i in range(50)]
    options = {
        "data_page_size": 5000,
        "write_batch_size": 5,
        "row_group_size": 30,
        "write_statistics": True,
    } | options
    pq.write_table(
        pa.table({"n": range(50), "image": images, "caption": captions}), tmp_path / "a.parquet", **options
    )
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    with (tmp_path / "a.parquet").open("rb") as file:
        for number in range(2):
            group = metadata.row_group(number)
            image, caption = (parquet_pages.look(file, group, [name]) for name in ("image", "caption"))
            assert (image.values, caption.values) == (group.num_rows, group.column(2).num_values)
            assert group.num_rows * 1000 < image.total <= group.column(1).total_uncompressed_size
            assert 5000 < image.largest < image.total
            assert image.largest + 7 * 900 < image.cost < image.largest + 7 * 1100
