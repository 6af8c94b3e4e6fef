"""Fixtures for the whole suite: a tiny language model on disk and speech-like audio of our own."""

import json
import os
import signal
import tempfile
from importlib import metadata
from pathlib import Path

# Compilation dominates these tests: programs that occur twice, in subprocesses too, are kept.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="llmcodec-xla-"))
# Nearly every program here runs once on tiny arrays: what optimising it costs is never earned back
# (a training step: 74 CPU seconds without the second flag, 47 with both). A flag that is unknown
# ends the process, and newer releases do not know the second. One thread, so that what is compared
# to the last bit can be: XLA splits sums by how many threads take part, and the published STFT
# losses turn a last digit into percents of a gradient. XLA_FLAGS="" tests what users get.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_multi_thread_eigen=false"
    + " --xla_cpu_use_fusion_emitters=false" * metadata.version("jaxlib").startswith("0.10."),
)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from llmcodec_jax import audio
from llmcodec_jax.lm.config import to_huggingface
from llmcodec_jax.lm.decoder import init_params
from llmcodec_jax.lm.weights import unstacked
from tests.tiny import RATE, WORDS, babble, tiny_lm_config


def pytest_configure():
    """Signals are heeded by the tests and their children, under nohup and in the background too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory) -> Path:
    """A Hugging Face folder: random weights, config and a word tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-lm")
    config = tiny_lm_config()
    params = init_params(config, jax.random.key(1), jnp.float32)
    save_file(dict(unstacked(params)), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(to_huggingface(config, "float32")))
    vocabulary = {word: index for index, word in enumerate(["<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def speech(tmp_path_factory) -> Path:
    """Twenty-four clips of 0.4 to 1.6 s with texts, in LibriSpeech's layout."""
    folder = tmp_path_factory.mktemp("speech")
    rng = np.random.default_rng(0)
    for speaker in (1, 2):
        lines = []
        for number in range(12):
            name = f"{speaker}-1-{number:04d}"
            wav = babble(rng.uniform(0.4, 1.6), 100 * speaker + number)
            audio.write(folder / str(speaker) / "1" / f"{name}.flac", wav, RATE)
            lines.append(f"{name} {' '.join(rng.choice(WORDS, 4))}\n")
        (folder / str(speaker) / "1" / f"{speaker}-1.trans.txt").write_text("".join(lines))
    return folder
