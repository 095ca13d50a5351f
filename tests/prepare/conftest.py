"""Small pictures in folders and archives, and the records that are made from them."""

import io
import json
import struct
import tarfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from imagen_jax.data import pipeline, sources
from imagen_jax.prepare import origins
from imagen_jax.prepare.limits import Limits
from imagen_jax.prepare.pictures import Found, Rules
from imagen_jax.prepare.quarantine import LeftOut
from tests.pictures import encoded


def png(i=0):
    return encoded(np.full((9, 9, 3), i, np.uint8))


def put(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def archive(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def table(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def prepared(root, limits=None, **keys):
    """Captions of the records, and {file: reason} of what is left out."""
    survey = origins.survey(root, limits=limits, **keys)
    job = origins.Pictures(survey.origin, Rules(1, 100, limits=limits or Limits()))
    items = [item for part in survey.parts for item in job.examples(part)]
    rows = [*survey.left_out, *(item for item in items if isinstance(item, LeftOut))]
    return [item[1]["caption"] for item in items if not isinstance(item, LeftOut)], {
        row.file: row.reason for row in rows
    }


def found(origin, files):
    """[(file, captions)] and [(file, reason)] of a plan and its parts."""
    parts, left_out = origin.plan(files)
    items = [item for part in parts for item in origin.read(part)]
    kept = [(item.file, item.captions) for item in items if isinstance(item, Found)]
    rows = [*left_out, *(item for item in items if not isinstance(item, Found))]
    return kept, [(row.file, row.reason) for row in rows]


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("prepare_data")


def random_picture(i, form="PNG", size=(10, 9)):
    return encoded(np.random.default_rng(i).integers(0, 255, (*size[::-1], 3), np.uint8), form)


def huge(width=40000, height=40000):
    """A sound PNG header that promises 1.6 billion pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + chunk + random_picture(0)[33:]


def prepare(script, root, output, **options):
    script.main(script.Options(output=output, input=root, **{"min_size": 8, "num_workers": 1} | options))
    return contents(output), rows(output)


def contents(output, split="train"):
    source = sources.open_source(output, split)
    return [(source[i]["caption"], source[i]["image"]) for i in range(len(source))]


def rows(output):
    lines = (output / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["file"], row["reason"]) for row in map(json.loads, lines)]


def picture(i=0, size=(80, 70)):
    return Image.fromarray(np.random.default_rng(i).integers(0, 255, (*size[::-1], 3), np.uint8))


def save(path, image, caption="a thing", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def read(output, split="train"):
    return list(pipeline.examples(sources.open_source(output, split)))
