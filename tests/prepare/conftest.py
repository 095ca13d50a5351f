"""Small pictures in folders and archives, and the records that are made from them."""

import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from imagen_jax.prepare import origins
from imagen_jax.prepare.pictures import Found, Rules
from imagen_jax.prepare.quarantine import LeftOut


def png(i=0):
    buffer = io.BytesIO()
    Image.fromarray(np.full((9, 9, 3), i, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


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


def prepared(root, **keys):
    """Captions of the records, and {file: reason} of what is left out."""
    survey = origins.survey(root, **keys)
    job = origins.Pictures(survey.origin, Rules(1, 100))
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
