"""The tokenizers of the T5 family from spiece.model, by the library that made them.

The ids of a text are sentencepiece's own, with its normalisation, byte fallback and user-defined symbols. Around
that, as in transformers: tokens that the settings name are found in the text first and taken whole, and the
sentinels of T5's training (<extra_id_0>, ...) follow the model's pieces where it does not have them itself.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imagen_jax.text import model_files

_NUM_SENTINELS = 100  # of T5, where neither model nor settings say
_SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


class SentencePieceTokenizer:
    """See `tokenizer.Tokenizer`."""

    num_special = 1  # </s> at the end

    def __init__(self, directory: Path, vocab_size: int):
        """Read spiece.model and the settings beside it, if there are any.

        Args:
          directory: of the model.
          vocab_size: of the model; sentinels that no file names exist only if it has room for them.

        Raises:
          ValueError: settings of wrong types, or no token for the end of a text.
          RuntimeError: sentencepiece cannot read the model.
        """
        import sentencepiece

        path = directory / "spiece.model"
        self._model = sentencepiece.SentencePieceProcessor()
        if not self._model.LoadFromSerializedProto(path.read_bytes()) or not self._model.get_piece_size():
            raise ValueError("spiece.model must hold pieces; got none.")
        settings = {
            **model_files.read_settings(directory / "special_tokens_map.json"),
            **model_files.read_settings(directory / "tokenizer_config.json"),
        }
        self.unknown_id = self._model.unk_id()
        self._added = self._added_tokens(directory, settings, vocab_size)
        special = {key: _content(settings.get(key, name)) for key, name in _SPECIAL.items()}
        if "bos_token" in settings:
            special["bos_token"] = _content(settings["bos_token"])
        eos = self.id_of(special["eos_token"])
        self._eos = self._model.eos_id() if eos is None else eos
        if self._eos < 0:
            raise ValueError(f"spiece.model must have a token for the end of a text; got no {special['eos_token']}.")
        named = [*special.values(), *map(_content, settings.get("additional_special_tokens", ()))]
        whole = {token: self.id_of(token) for token in (*named, *self._added)}
        self._whole = {token: id for token, id in whole.items() if token and id is not None}
        longest_first = sorted(self._whole, key=len, reverse=True)
        self._pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
        sentinels = (token for token in self._added if token.startswith("<extra_id_"))
        self._strips = dict.fromkeys(sentinels, (True, True)) | _strips(settings)
        self.num_ids = 1 + max(self._model.get_piece_size() - 1, *self._whole.values())

    def _added_tokens(self, directory: Path, settings: Mapping[str, Any], vocab_size: int) -> dict[str, int]:
        """Return the tokens that are not pieces of the model, with their ids."""
        added = {_content(token): int(id) for id, token in settings.get("added_tokens_decoder", {}).items()}
        path = directory / "added_tokens.json"
        others = model_files.read_json(path) if path.is_file() else {}
        for token, id in others.items():
            if type(id) is not int or not 0 <= id < 2**31:
                raise ValueError(
                    f"{path}: the id of {token!r:.80} must be an integer; got {id!r:.80}: get it again."
                )
        added = others | added
        num = self._model.get_piece_size()
        sentinels = self._num_sentinels(settings, vocab_size)
        if sentinels > vocab_size:
            raise ValueError(f"extra_ids must be at most the model's {vocab_size} tokens; got {sentinels}.")
        for i in range(sentinels):
            added.setdefault(f"<extra_id_{i}>", num + sentinels - 1 - i)
        pieces = {token for token in added if self._piece_id(token) is not None}
        return {token: id for token, id in added.items() if token not in pieces}

    def _num_sentinels(self, settings: Mapping[str, Any], vocab_size: int) -> int:
        """Return the number of sentinels after the pieces of the model."""
        if any(self._piece_id(token) is not None for token in ("<extra_id_0>", "\u2581<extra_id_0>")):
            return 0
        if "extra_ids" in settings:
            return settings["extra_ids"]
        named = [_content(token) for token in settings.get("additional_special_tokens", ())]
        num = sum(token.startswith("<extra_id_") for token in named)
        has_room = self._model.get_piece_size() + _NUM_SENTINELS <= vocab_size
        return num or (_NUM_SENTINELS if has_room and "added_tokens_decoder" not in settings else 0)

    def _piece_id(self, token: str) -> int | None:
        id = self._model.piece_to_id(token)
        return id if id != self.unknown_id or token == self._model.id_to_piece(id) else None

    def id_of(self, token: str) -> int | None:
        """Return the id of a token as it is written in files, None if there is none."""
        found = self._piece_id(token)
        return self._added.get(token) if found is None else found

    def encode(self, captions: Sequence[str]) -> list[list[int]]:
        """Return the ids of each caption, the special token included."""
        return [[*self._ids(caption), self._eos] for caption in captions]

    def cut(self, caption: str, length: int) -> list[int]:
        """Return at most `length` ids of a caption, the special token kept."""
        return [*self._ids(caption)[: length - self.num_special], self._eos]

    def unknown_share(self, caption: str) -> float:
        """Return the larger share, of a caption's characters or of its tokens, that is unknown."""
        ids, pieces = [], []
        for part, id in self._parts(caption):
            ids += self._model.encode(part) if id is None else [id]
            pieces += self._model.encode(part, out_type=str) if id is None else [part]
        sizes = [len(piece.replace("\u2581", "")) for piece in pieces]
        unknown = [id == self.unknown_id for id in ids]
        in_unknown = sum(size for size, is_unknown in zip(sizes, unknown, strict=True) if is_unknown)
        return max(in_unknown / max(sum(sizes), 1), sum(unknown) / max(len(ids), 1))

    def _ids(self, caption: str) -> list[int]:
        parts = self._parts(caption)
        return [
            id for part, whole in parts for id in (self._model.encode(part) if whole is None else [whole])
        ]

    def _parts(self, caption: str) -> list[tuple[str, int | None]]:
        """Return a caption split at its whole tokens: (text, None), (token, id), (text, None), ..."""
        parts = self._pattern.split(caption)
        for at in range(1, len(parts), 2):
            strips_left, strips_right = self._strips.get(parts[at], (False, False))
            parts[at - 1] = parts[at - 1].rstrip() if strips_left else parts[at - 1]
            parts[at + 1] = parts[at + 1].lstrip() if strips_right else parts[at + 1]
        found = [(part, self._whole[part] if at % 2 else None) for at, part in enumerate(parts)]
        return [pair for pair in found if pair[0]]


def _content(token: Any) -> str:
    return token["content"] if isinstance(token, dict) else token


def _strips(settings: Mapping[str, Any]) -> dict[str, tuple[bool, bool]]:
    """Return for each token whether it includes the white space to its left and right."""
    spelled = [
        *settings.get("added_tokens_decoder", {}).values(),
        *settings.get("additional_special_tokens", ()),
    ]
    spelled = [token for token in spelled if isinstance(token, dict)]
    return {token["content"]: (token.get("lstrip") is True, token.get("rstrip") is True) for token in spelled}
