"""Speech from the eSpeak NG library by ctypes: the embedded data's second choice.

The library and its voices come out of the `espeakng-loader` wheel, in which they are plain
files. Sentences come from a small grammar of our own.
"""

from __future__ import annotations

import ctypes
import random
import sys
from pathlib import Path

import numpy as np

from llmcodec_jax.data.packages import FetchError

ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-gb-x-gbclan")
VARIANTS = ("m1", "f1", "m3", "f2")
VOICES = tuple(f"{accent}+{variant}" for variant in VARIANTS for accent in ACCENTS)

_SYNCHRONOUS, _DO_NOT_EXIT, _UTF8 = 2, 0x8000, 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_LONGEST_PATH = 140  # the library keeps its data path in a fixed buffer of 160 bytes


class Speaker:
    """The library, opened once per process. `folder` holds the unpacked wheel."""

    def __init__(self, folder: Path):
        """Raises FetchError where the library cannot be used."""
        pattern = {"darwin": "*espeak-ng*.dylib", "win32": "*espeak-ng*.dll"}.get(
            sys.platform, "libespeak-ng.so"
        )
        libraries = sorted(folder.rglob(pattern))
        data = next(iter(sorted(folder.rglob("espeak-ng-data"))), None)
        if not libraries or data is None:
            raise FetchError(f"{folder}: holds no eSpeak NG library for {sys.platform}")
        if len(str(data)) > _LONGEST_PATH:
            raise FetchError(f"{data}: eSpeak NG cannot use so long a path; set a shorter --cache")
        try:
            self._library = ctypes.CDLL(str(libraries[0]))
        except OSError as error:
            raise FetchError(f"{libraries[0]}: cannot be loaded ({error})") from error
        path = str(data.parent).encode()
        self.rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, path, _DO_NOT_EXIT)
        if self.rate <= 0:
            raise FetchError(f"{libraries[0]}: does not find its voices in {data}")
        self._pieces: list[np.ndarray] = []
        kind = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )
        self._callback = kind(self._collect)  # must outlive the library's use of it
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples, count: int, _events) -> int:
        if samples and count:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, text: str, voice: str, words_per_minute: int, pitch: int) -> np.ndarray:
        """Text in a voice such as "en-us+f3" -> float32 [N] at `rate`; pitch in 0..100."""
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise FetchError(f"eSpeak NG has no voice {voice!r}")
        for parameter, value in ((_RATE, words_per_minute), (_PITCH, pitch), (_RANGE, 60)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._pieces.clear()
        data = text.encode()
        size = ctypes.c_size_t(len(data) + 1)
        self._library.espeak_Synth(data, size, 0, 1, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        if not self._pieces:
            raise FetchError(f"eSpeak NG said nothing for {text!r} in voice {voice!r}")
        return np.concatenate(self._pieces).astype(np.float32) / 32768


_WORDS = {
    "who": "the baker|my sister|an old sailor|the teacher|our neighbour|a young doctor|the painter|"
    "that quiet boy|the gardener|your uncle|a tall stranger|the singer|her brother|the farmer",
    "did": "found|carried|painted|remembered|forgot|repaired|sold|bought|described|lost|borrowed|"
    "hid|measured|watched|counted|opened",
    "how": "slowly|without a word|very carefully|again|at last|in a hurry|by mistake|with a smile|"
    "twice|before anyone noticed",
    "what": "the broken clock|a heavy chest|three green bottles|the first letter|"
    "a map of the coast|some fresh bread|the wooden bridge|a small silver key|"
    "the garden chairs|ten thousand stars|"
    "an empty jug|the winter coats|a box of matches|the yellow boat",
    "where": "behind the station|near the river|in the market|under the stairs|at the harbour|"
    "on the hill|beside the church|across the valley|in the kitchen|outside the theatre",
    "when": "on Monday|before sunrise|last summer|after the storm|at half past seven|every autumn|"
    "during the long journey|in the year of the flood|shortly after midnight|yesterday evening",
    "number": "two|five|eleven|seventeen|forty|ninety nine|six hundred|four thousand",
    "unit": "miles|steps|hours|pages|pounds|questions|houses|apples",
}
_PATTERNS = (
    "{who} {did} {what} {where}.",
    "{when}, {who} {did} {what}.",
    "{who} {did} {what} {how}.",
    "why has {who} not seen {what} {where}?",
    "it was {number} {unit} from here, and {who} {did} {what} {how}.",
    "{who} {did} {what} {when}, and {who} {did} {what}.",
    "do you know who {did} {what} {where}?",
    "there were {number} {unit}, said {who}, {where}.",
)


def sentences(count: int, seed: int = 0) -> list[str]:
    """`count` different sentences, the same for the same seed."""
    draw = random.Random(seed)
    choices = {slot: words.split("|") for slot, words in _WORDS.items()}
    found: dict[str, None] = {}
    while len(found) < count:
        text = draw.choice(_PATTERNS)
        for slot, words in choices.items():
            while "{" + slot + "}" in text:
                text = text.replace("{" + slot + "}", draw.choice(words), 1)
        found[text[0].upper() + text[1:]] = None
    return list(found)
