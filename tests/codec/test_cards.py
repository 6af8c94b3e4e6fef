"""The list of published codecs, and the documentation made from it."""

from pathlib import Path

import pytest

from llmcodec_jax import codecs
from llmcodec_jax.codec import cards, hub

CARDS = {card.name: card for card in cards.CARDS}


def test_rates_are_the_published_ones():
    assert {name: round(card.bits) for name, card in CARDS.items()} | {"auv": 0} == {
        "auv": 0,
        "encodec_24khz": 24_000,
        "encodec_48khz": 24_000 + 1_500,  # and the loudness, a code a frame
        "dac_16khz": 6_000,
        "dac_24khz": 24_000,
        "dac_44khz": 7_752,
        "mimi": 4_400,
        "bigcodec": 1_040,
        "wavtokenizer_75hz": 900,
        "wavtokenizer_40hz": 480,
        "speechtokenizer": 4_000,
        "unicodec": 1_050,
    }
    assert CARDS["mimi"].frame_rate == 12.5
    assert [name for name, card in CARDS.items() if card.causal] == ["encodec_24khz", "mimi"]


def test_sizes_are_those_of_transformers_and_the_codebooks():
    """The models hold their codebooks as buffers, which transformers does not count."""
    assert CARDS["encodec_24khz"].parameters == 14_851_810 + 32 * 1024 * 128
    assert CARDS["mimi"].parameters == 79_308_609 + 32 * 2048 * 256
    assert CARDS["dac_44khz"].parameters == 76_620_777


def test_the_command_lists_every_card(capsys):
    assert codecs.main([]) == 0
    printed = capsys.readouterr().out
    assert all(card.codec in printed for card in cards.CARDS)


def test_the_documentation_is_made_from_the_cards():
    text = (Path(__file__).parents[2] / "docs/codecs.md").read_text()
    section = text.partition("<!-- codecs: begin -->\n")[2].partition("<!-- codecs: end -->")[0]
    assert section == cards.markdown() + "\n", "python -m llmcodec_jax.codecs --markdown"


def test_a_cached_codec_is_known_without_a_network(monkeypatch):
    hugging = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(
        hugging, "try_to_load_from_cache", lambda repo, name, revision: f"{repo}/{name}"
    )
    assert hub.is_cached("hf:kyutai/mimi")
    monkeypatch.setattr(hugging, "try_to_load_from_cache", lambda *_, revision: None)
    assert not hub.is_cached("hf:kyutai/mimi")
    assert not hub.is_cached("auv.pt")
