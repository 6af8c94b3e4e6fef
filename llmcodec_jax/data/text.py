"""Transcripts on their way to the language model: normalised, then its own tokens."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Protocol


class Tokenizer(Protocol):
    """The language model's own tokenizer: ours, or a `tokenizers.Tokenizer`."""

    def encode(self, text: str) -> Sequence[int]: ...


def normalise(text: str) -> str:
    """NFKC, single spaces, no control characters; text that is all capitals becomes lower case.

    LibriSpeech's transcripts are in capitals, which a language model splits into rare tokens.
    """
    text = unicodedata.normalize("NFKC", text)
    text = "".join(" " if unicodedata.category(char) in ("Cc", "Cf") else char for char in text)
    text = " ".join(text.split())
    return text.lower() if text.upper() == text else text


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Text -> token ids, normalised first; no begin or end token is added here."""
    normal = normalise(text)
    if hasattr(tokenizer, "token_to_id"):  # tokenizers.Tokenizer
        return list(tokenizer.encode(normal, add_special_tokens=False).ids)
    return [int(token) for token in tokenizer.encode(normal)]
