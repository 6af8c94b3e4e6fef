"""Audio for the study out of public packages, in the layout that `reproduce --data` reads.

    python -m llmcodec_jax.study.public_audio DIR

prompts_{en,es,fr,it,ru}: recorded telephone prompts with transcripts, one speaker a language
(Debian's asterisk-core-sounds, two hours). voices_en: sentences of our own in 24 eSpeak NG voices
(about 70 minutes). music: instrumental (asterisk-moh-opsound, 18 minutes). sound: recorded effects
(openttd-opensfx, 71 clips). Needs apt-get and dpkg-deb, not root, and 130 MB of downloads; folders
that are there already are left alone. Licences and attributions lie beside the audio.
"""

from __future__ import annotations

import argparse
import functools
import io
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import soundfile

from llmcodec_jax import audio
from llmcodec_jax.data.cache import build_once
from llmcodec_jax.data.embedded import CREDITS, RATE, build_recorded, build_spoken, decode_g722
from llmcodec_jax.data.packages import FetchError, fetch_debian, keep_licence
from llmcodec_jax.errors import answer_errors

SENTENCES = 1200
MUSIC_SECONDS = 10
_MUSIC = "asterisk-moh-opsound-g722"
_SOUNDS = "openttd-opensfx"


def build(folder: Path) -> None:
    """Makes every source below `folder` that is not there yet. Raises FetchError, AudioError."""
    for language in CREDITS:
        prompts = functools.partial(build_recorded, language=language)
        build_once(folder / f"prompts_{language}", prompts)
    build_once(folder / "voices_en", functools.partial(build_spoken, count=SENTENCES))
    build_once(folder / "music", build_music)
    build_once(folder / "sound", build_sounds)


def build_music(folder: Path) -> None:
    """Pieces of music cut into clips of MUSIC_SECONDS; what is left over is dropped."""
    with tempfile.TemporaryDirectory(prefix="llmcodec-music-") as temporary:
        fetch_debian((_MUSIC,), Path(temporary))
        size = MUSIC_SECONDS * RATE
        for piece in sorted(Path(temporary).rglob("*.g722")):
            wav = decode_g722(piece)
            for number in range(len(wav) // size):
                clip = wav[number * size : (number + 1) * size]
                audio.write(folder / f"{piece.stem}_{number:03d}.flac", clip, RATE)
        keep_licence(Path(temporary), _MUSIC, folder)


def build_sounds(folder: Path) -> None:
    """Every effect of the game's catalogue; its entry names author and licence."""
    with tempfile.TemporaryDirectory(prefix="llmcodec-sounds-") as temporary:
        fetch_debian((_SOUNDS,), Path(temporary))
        catalogue = next(Path(temporary).rglob("*.cat"), None)
        if catalogue is None:
            raise FetchError(f"{_SOUNDS}: the package holds no catalogue of sounds")
        credits = []
        for number, (title, data) in enumerate(read_catalogue(catalogue.read_bytes())):
            try:
                wav, rate = soundfile.read(io.BytesIO(data), dtype="float32")
            except soundfile.LibsndfileError as error:
                raise audio.AudioError(f"{_SOUNDS}, {title}: {error}") from error
            if not len(wav):  # the catalogue has a place without a sound
                continue
            name = f"sfx_{number:03d}"
            audio.write(folder / f"{name}.flac", audio.resample(wav, rate, RATE), RATE)
            credits.append(f"{name}: {title}\n")
        (folder / "ATTRIBUTION.txt").write_text("".join(credits))
        keep_licence(Path(temporary), _SOUNDS, folder)


def read_catalogue(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Transport Tycoon's sound catalogue -> (title, WAV file) of each entry. Raises AudioError.

    Pairs of little-endian (offset, size), then at each offset a byte of length, that many bytes
    of title, and `size` bytes of WAV. The first offset gives the number of pairs; its top bit
    marks the newer of two versions and is no part of it.
    """
    try:
        end = struct.unpack_from("<I", data)[0] & 0x7FFFFFFF
        for offset, size in struct.iter_unpack("<II", data[:end]):
            start = (offset & 0x7FFFFFFF) + 1
            title = data[start : start + data[start - 1]]
            start += len(title)
            if data[start : start + 4] != b"RIFF" or start + size > len(data):
                raise audio.AudioError("a sound catalogue with an entry that is no WAV file")
            yield title.rstrip(b"\0").decode("utf-8", "replace"), data[start : start + size]
    except (struct.error, IndexError) as error:
        raise audio.AudioError(f"a damaged sound catalogue ({error})") from error


@answer_errors
def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    folder = parser.parse_args().folder
    build(folder)
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
