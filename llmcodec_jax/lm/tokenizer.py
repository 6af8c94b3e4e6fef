"""Text tokenizers, read through the `tokenizers` library from a folder or a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

SETTINGS = ("chat_template", "bos_token", "eos_token", "pad_token", "unk_token", "model_max_length")
"""What of a folder's `tokenizer_config.json` export hands on."""


class TextTokenizer:
    """`encode(text) -> ids` without any token of its own added, and back."""

    def __init__(self, tokenizer: Tokenizer, settings: dict[str, Any] | None = None):
        self._tokenizer = tokenizer
        self._settings = settings or {}

    @classmethod
    def from_file(cls, path: str | Path) -> TextTokenizer:
        """Reads a `tokenizer.json`. Raises FileNotFoundError naming it."""
        if not Path(path).exists():
            raise FileNotFoundError(f"{path}: no such tokenizer; copy it beside the weights")
        return cls(Tokenizer.from_file(str(path)), _read_settings(Path(path).parent))

    def encode(self, text: str) -> list[int]:
        """Text -> token ids; special tokens written in the text are recognised."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids -> text, special tokens included."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def token_id(self, token: str) -> int | None:
        """The id of an exact token, or None."""
        return self._tokenizer.token_to_id(token)

    def __len__(self) -> int:
        """One past the largest id, added tokens included."""
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def with_tokens(self, tokens: Sequence[str]) -> TextTokenizer:
        """A copy whose vocabulary goes on with `tokens`, each one atomic. Raises if present."""
        known = [token for token in tokens if self.token_id(token) is not None]
        if known:
            raise ValueError(f"{known[0]} is in the tokenizer already: merge into the base model")
        copy = Tokenizer.from_str(self._tokenizer.to_str())
        copy.add_tokens([AddedToken(t, normalized=False, special=False) for t in tokens])
        return TextTokenizer(copy, self._settings)

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json` and the `tokenizer_config.json` that transformers expects."""
        self._tokenizer.save(str(Path(folder) / "tokenizer.json"))
        table = {"tokenizer_class": "PreTrainedTokenizerFast"} | self._settings
        path = Path(folder) / "tokenizer_config.json"
        path.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n")


def _read_settings(folder: Path) -> dict[str, Any]:
    """The settings that stand beside a `tokenizer.json`; newer folders keep the template apart."""
    path, template = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    table = json.loads(path.read_text()) if path.exists() else {}
    if template.exists():
        table["chat_template"] = template.read_text()
    return {name: table[name] for name in SETTINGS if table.get(name) is not None}
