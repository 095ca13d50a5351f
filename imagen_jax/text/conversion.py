"""Models whose weights are there only as pickles: their conversion to safetensors."""

import shutil
import uuid
from pathlib import Path

from imagen_jax.storage import files
from imagen_jax.text import families, model_files, pretrained, torch_file

_PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
_DIFFUSERS = "_class_name"  # key of config.json in diffusers' layout


def convert(name_or_path: str | Path, output: str | Path | None = None) -> Path:
    """Write safetensors of a model that has only pickles, tensor by tensor, without torch.

    Args:
      name_or_path: a directory, also the unet/ of a pipeline of diffusers, or a name on the hub, also as name@revision.
      output: a new directory, which gets the config and the tokenizer too; None: the model's own directory.

    Returns:
      The file that was written.

    Raises:
      ValueError: there is no such model, nothing to convert, or a pickle with anything but tensors; a name
        without `output`, or an `output` that is there already.
    """
    directory = pretrained.local(name_or_path)
    if output is None:
        if directory is None:
            raise ValueError(
                f"--output must be given where the model is no local directory; got {str(name_or_path)!r:.200}: name a "
                "new directory."
            )
        return torch_file.convert(directory, directory, _is_needed(directory))
    output = Path(output).expanduser()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output must be a new directory; got {output}, which exists: choose another.")
    files.check_directory(output, "--output")
    if directory is None:
        directory = pretrained.download(name_or_path, _PICKLES)
    # Written beside it and renamed, so that a conversion that was stopped leaves nothing that looks complete.
    temporary = output.absolute().with_name(f".{output.name}-{uuid.uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        for file in sorted(directory.iterdir()):
            is_ours = file.suffix in (".json", ".txt", ".model") and not file.name.endswith(".index.json")
            if is_ours and file.is_file():
                model_files.check_size(file)
                shutil.copyfile(file, temporary / file.name)
        written = torch_file.convert(directory, temporary, _is_needed(directory)).name
        temporary.rename(output)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return output / written


def _is_needed(directory: Path):
    """Of a tensor's name, whether anything here reads it: of a T5 all but the decoder."""
    file = directory / "config.json"
    if file.is_file() and _DIFFUSERS in model_files.read_json(file):
        return lambda name: True
    family, config = families.read_config(directory)
    if not hasattr(config, "d_kv"):  # BERT has little else, and CLIP's image half is for CLIP score
        return lambda name: True
    tied = {name for others in family.tied_names(config).values() for name in others}
    return lambda name: family.canonical_name(name) is not None or name in tied
