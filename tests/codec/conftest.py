"""The small codec, as a module and on disk."""

import pytest

from llmcodec_jax.codec.auv.model import AUV
from llmcodec_jax.codec.store import save_codec_folder
from tests.tiny import SMALL, init


@pytest.fixture(scope="session")
def small():
    """(AUV, variables) with random weights."""
    codec = AUV(**SMALL)
    return codec, init(codec)


@pytest.fixture(scope="session")
def small_folder(small, tmp_path_factory):
    """The same codec as a converted folder."""
    path = tmp_path_factory.mktemp("codec") / "converted"
    save_codec_folder(path, *small)
    return path
