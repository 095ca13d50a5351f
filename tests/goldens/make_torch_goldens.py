"""Makes pytorch_model.bin files in each of torch's formats, for the tests of their conversion.

Run where torch is installed (the committed files: torch 2.13.0, seed 0; the version is in values.safetensors), with no
argument:

    pip install torch==2.13.0 safetensors
    python tests/goldens/make_torch_goldens.py

Writes torch/: odd.bin and odd_legacy.bin, the same tensors in the format of torch 1.6 and later and in the one
before; values.safetensors, what they hold; sharded/, the same in two shards with an index.
"""

import json
import pathlib

import torch
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent / "torch"


def main() -> None:
    torch.manual_seed(0)
    (HERE / "sharded").mkdir(parents=True, exist_ok=True)
    table, block = torch.randn(6, 4), torch.randn(40)
    tensors = {
        "table": table,
        "tied": table,  # the same storage twice
        "transposed": torch.randn(3, 5).T,
        "row": table[2],
        "column": table[:, 1],
        "part": block[7:19].view(3, 4),
        "every third": block[1::3],
        "number": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "half": torch.randn(5).half(),
        "bfloat16": torch.randn(5).bfloat16(),
        "double": torch.randn(2, 2).double(),
        "positions": torch.arange(7)[None],
        "bytes": torch.arange(5, dtype=torch.uint8),
        "switch": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.randn(2, 3)),
    }
    module = torch.nn.Linear(2, 2)
    state = module.state_dict()  # an OrderedDict with _metadata
    state.update(tensors)
    torch.save(state, HERE / "odd.bin")
    torch.save(state, HERE / "odd_legacy.bin", _use_new_zipfile_serialization=False)
    values = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
    save_file(values, HERE / "values.safetensors", {"torch": torch.__version__})
    where = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(state)}
    for file in set(where.values()):
        torch.save({name: state[name] for name in state if where[name] == file}, HERE / "sharded" / file)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (HERE / "sharded" / "pytorch_model.bin.index.json").write_text(json.dumps(index) + "\n")


if __name__ == "__main__":
    main()
