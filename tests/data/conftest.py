"""A small corpus in LibriSpeech's layout, made of tones."""

import pytest

from tests.tiny import write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> str:
    return f"librispeech:{write_corpus(tmp_path_factory.mktemp('corpus'))}"
