"""Long audio in overlapping windows: memory that does not grow, joints that cannot be heard.

Every window carries `context` frames at each inner end that only inform its middle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np


def encode(
    blocks: Iterable[np.ndarray],
    encode_window: Callable[[np.ndarray], np.ndarray],
    window: int,
    context: int,
    hop: int,
) -> Iterator[np.ndarray]:
    """Consecutive audio blocks [n] of any sizes -> consecutive pieces of codes.

    `encode_window` takes up to `window` frames of audio; `context` is in frames. Together the
    pieces are ceil(total / hop) codes. At most a window and a block are held at once.
    """
    pending: list[np.ndarray] = []
    held = first = 0  # samples held; frames of left context among them
    for block in blocks:
        pending.append(np.asarray(block, np.float32))
        held += len(block)
        # Strictly more than a window, so that the last piece always has something to say.
        while held > window * hop:
            buffer = np.concatenate(pending)
            codes = encode_window(buffer[: window * hop])
            yield codes[first : window - context]
            rest = buffer[(window - 2 * context) * hop :]
            pending, held, first = [rest], len(rest), context
    if held:
        yield encode_window(np.concatenate(pending))[first:]


def decode(
    codes: np.ndarray,
    decode_window: Callable[[np.ndarray], np.ndarray],
    window: int,
    context: int,
    hop: int,
    fade: int,
) -> Iterator[np.ndarray]:
    """Codes [T, ...] -> consecutive pieces of audio, T * hop samples together.

    Neighbouring windows overlap by two contexts and are blended over `fade` frames in the middle.
    """
    step = window - 2 * context
    fade = min(fade, 2 * context) * hop
    ramp = (np.arange(fade, dtype=np.float32) + 0.5) / max(fade, 1)
    middle = context * hop - fade // 2  # where the blend starts, from the overlap's start
    tail = None
    for start in range(0, len(codes), step):
        wav = decode_window(codes[start : start + window])
        if tail is not None:
            blended = tail * (1 - ramp) + wav[middle : middle + fade] * ramp
            wav = np.concatenate([blended, wav[middle + fade :]])
            start_sample = start * hop + middle
        else:
            start_sample = 0
        if start + window >= len(codes):
            yield wav
            return
        cut = (start + step) * hop + middle - start_sample
        yield wav[:cut]
        tail = wav[cut : cut + fade]
