"""llmcodec_jax: neural audio codecs for language models, in JAX.

    codec = llmcodec_jax.load_codec(CODEC)
    codes = codec.encode(wav, sample_rate)      # int32 [T]; lists of clips give lists
    wav = codec.decode(codes)                   # float32 [T * 320] at codec.sample_rate
    wav = llmcodec_jax.speak(RUN, "any text")   # by a speech LM over a codec's tokens

Importing the package is cheap: JAX is loaded by the first use.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmcodec_jax.codec.inference import Codec
    from llmcodec_jax.generate import speak

__all__ = ["Codec", "load_codec", "speak"]
__version__ = "0.2.0"


def load_codec(codec: str | Path, dtype: str = "float32", batch_size: int | None = None) -> Codec:
    """Loads a codec to encode and decode with.

    `codec`: "mini" or "mini-0.1", which come with the package (a path of that name wins), a run
    folder, a converted folder, a `.safetensors` export, a published `.pt`, a Hugging Face model
    folder (`config.json` and `model.safetensors`), or `hf:OWNER/NAME[@REVISION][/FILE]`; or a
    folder with Lyra V2's three `.tflite` files (`codec.lyra`), which keep their own number types.
    `dtype`: of matrix products, "float32" or "bfloat16"; the code search stays float32.
    `batch_size`: clips computed at once; by default 1 on CPUs, 8 on accelerators.
    Raises FileNotFoundError, `torch_file.TorchFileError`, `layout.LayoutError` or `hub.HubError`
    naming the file and what is wrong with it.
    """
    from llmcodec_jax.codec import inference, lyra

    if lyra.is_folder(codec):
        return lyra.Lyra(codec)
    return inference.load(codec, dtype=dtype, batch_size=batch_size)


def __getattr__(name: str):
    if name == "Codec":
        from llmcodec_jax.codec.inference import Codec

        return Codec
    if name == "speak":
        from llmcodec_jax.generate import speak

        return speak
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
