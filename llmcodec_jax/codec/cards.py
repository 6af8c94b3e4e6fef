"""The codecs that are read here: what each is, where its weights are, what is exact."""

from __future__ import annotations

import dataclasses
import functools
import math
import textwrap
from collections.abc import Mapping
from typing import Any

from llmcodec_jax.codec import hub, registry, store
from llmcodec_jax.codec.conv import encodec
from llmcodec_jax.types import Codec


@dataclasses.dataclass(frozen=True)
class Card:
    """One published release."""

    name: str
    codec: str  # what --codec and load_codec take
    family: str
    licence: str  # of the weights
    source: str
    note: str  # what is exact and what is not
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # other than its defaults

    @functools.cached_property
    def module(self) -> Codec:
        """The architecture, without weights."""
        return registry.family(self.family).module(**self.fields)

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.module.sample_rate / self.module.hop

    @property
    def bits(self) -> float:
        """Bits a second with all levels, every code taken as equally likely."""
        return self.frame_rate * self.module.levels * math.log2(self.module.codebook_size)

    @property
    def causal(self) -> bool:
        """Whether it streams."""
        return getattr(self.module, "stream_lead", None) is not None

    @functools.cached_property
    def parameters(self) -> int:
        """Numbers in the weights, codebooks included: counted in the published layout's list."""
        table = registry.family(self.family).tensor_table
        assert table is not None, "a card's family says what its tensors are"
        rows = [row for row in table(self.module) if row.constant is None]
        count = sum(math.prod(row.shape) for row in rows if row.path[0] == "params")
        # Codebooks that are running means: the sums beside them are no more weights.
        books = [row for row in rows if row.path[0] == "batch_stats" and len(row.shape) == 2]
        return count + sum({row.path[:-1]: math.prod(row.shape) for row in books}.values())

    @property
    def here(self) -> bool:
        """Whether its weights are on this machine: shipped, or in the Hub library's cache."""
        return self.codec in store.SHIPPED or hub.is_cached(self.codec)


PARITY = "codes, audio and gradients equal transformers' at seeded weights"
DAC = dict(licence="MIT", source="github.com/descriptinc/descript-audio-codec", family="dac")
LOW_RATE = dict(strides=(2, 4, 5, 8), norm="none")

SEEDED = "codes, audio and gradients equal the published code's at seeded weights"
WAVTOKENIZER: dict[str, Any] = dict(
    family="wavtokenizer",
    licence="MIT, by its repository",
    source="github.com/jishengpeng/WavTokenizer",
)

CARDS = (
    Card(
        "auv",
        "auv.pt",
        "auv",
        "see its model card",
        "arXiv 2509.21968",
        "codes, audio and gradients equal the published code's; bits kept both ways",
    ),
    Card(
        "encodec_24khz",
        "hf:facebook/encodec_24khz",
        "encodec",
        "MIT, by its repository",
        "github.com/facebookresearch/encodec",
        f"{PARITY}; bits kept both ways; also its authors' `.th`; padding exact",
    ),
    Card(
        "encodec_48khz",
        "hf:facebook/encodec_48khz",
        "encodec",
        "MIT, by its repository",
        "github.com/facebookresearch/encodec",
        f"{PARITY}, a window at a time; one sound in both channels; level 0 is the loudness",
        fields={**encodec.RELEASE_48KHZ, "strides": (2, 4, 5, 8), "width": 129, "levels": 17},
    ),
    Card(
        "dac_16khz",
        "hf:descript/dac_16khz",
        note=f"{PARITY}; bits kept both ways; also its authors' `.pth`; the last 8 samples are 0",
        fields={**LOW_RATE, "sample_rate": 16_000, "levels": 12},
        **DAC,
    ),
    Card(
        "dac_24khz",
        "hf:descript/dac_24khz",
        note="as dac_16khz",
        fields={**LOW_RATE, "sample_rate": 24_000, "levels": 32},
        **DAC,
    ),
    Card(
        "dac_44khz",
        "hf:descript/dac_44khz",
        note="as dac_16khz, without its zeros",
        fields={"norm": "none"},
        **DAC,
    ),
    Card(
        "mimi",
        "hf:kyutai/mimi",
        "mimi",
        "CC-BY 4.0",
        "github.com/kyutai-labs/moshi",
        f"{PARITY}; bits kept both ways; padding exact, as it is not in transformers",
    ),
    Card(
        "bigcodec",
        "hf:Alethia/BigCodec/bigcodec.pt",
        "bigcodec",
        "MIT, by its repository",
        "github.com/Aria-K-Alethia/BigCodec",
        f"{SEEDED}; bits kept both ways; padding exact",
    ),
    Card(
        "wavtokenizer_75hz",
        "hf:novateur/WavTokenizer/WavTokenizer_small_320_24k_4096.ckpt",
        note=f"{SEEDED}; bits of what runs kept both ways; padding exact",
        **WAVTOKENIZER,
    ),
    Card(
        "wavtokenizer_40hz",
        "hf:novateur/WavTokenizer/WavTokenizer_small_600_24k_4096.ckpt",
        note="as wavtokenizer_75hz",
        fields={"strides": (4, 5, 5, 6)},
        **WAVTOKENIZER,
    ),
    Card(
        "speechtokenizer",
        "hf:fnlp/SpeechTokenizer/speechtokenizer_hubert_avg/SpeechTokenizer.pt",
        "speechtokenizer",
        "Apache-2.0, by its repository",
        "github.com/ZhangXInFD/SpeechTokenizer",
        f"{SEEDED}; bits kept both ways; padding exact",
    ),
    Card(
        "unicodec",
        "unicodec.ckpt",
        "unicodec",
        "none stated",
        "github.com/Jiang-Yidi/UniCodec",
        f"{SEEDED}; bits of what runs kept both ways; padding exact; written from paper and shapes",
    ),
)
"""By family; the shipped codec has a card of its own (docs/mini.md)."""

LINE = 118  # characters a line of the documentation
COLUMNS = "codec family rate frames/s codes bit/s parameters streams licence here".split()


def row(card: Card) -> list[str]:
    """A card's cells, in the order of COLUMNS."""
    module = card.module
    return [
        card.codec,
        card.family,
        f"{module.sample_rate / 1000:g} kHz",
        f"{card.frame_rate:g}" if card.frame_rate % 1 == 0 else f"{card.frame_rate:.1f}",
        f"{module.levels} x {module.codebook_size:,}",
        f"{card.bits:,.0f}",
        f"{card.parameters / 1e6:.1f} M",
        "yes" if card.causal else "no",
        card.licence,
        "yes" if card.here else "no",
    ]


def markdown() -> str:
    """The cards as docs/codecs.md shows them: a table, and a line for each about its weights."""
    shown = ["name", *COLUMNS[1:-1]]
    lines = ["| " + " | ".join(shown) + " |", "|---" * len(shown) + "|"]
    for card in CARDS:
        lines.append("| " + " | ".join([card.name, *row(card)[1:-1]]) + " |")
    wrap = textwrap.TextWrapper(
        LINE, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
    )
    notes = [
        wrap.fill(f"- **{card.name}**, `{card.codec}` ({card.source}): {card.note}.")
        for card in CARDS
    ]
    return "\n".join([*lines, "", *notes])
