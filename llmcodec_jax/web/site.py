"""A static page on which a codec runs wholly in the visitor's browser.

Any file server will do; nothing is fetched from elsewhere when the page is open. The runtime
(onnxruntime-web) is taken from the npm registry once, when the site is built.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llmcodec_jax.codec.inference import Codec
from llmcodec_jax.portable import onnx
from llmcodec_jax.portable.graph import GraphError
from llmcodec_jax.web.server import PAGE

RUNTIME = "onnxruntime-web@1.23.2"
RUNTIME_FILES = (
    "ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm",
)  # fmt: skip


def build(codec: Codec, name: str, output: Path, clips: Sequence[np.ndarray]) -> onnx.Agreement:
    """Writes the site into the folder `output`. Raises GraphError saying what is missing."""
    found = onnx.export(codec, name, output, clips)
    (output / "example.py").unlink()
    for path in PAGE.iterdir():
        if path.name != "http_backend.js":
            target = "backend.js" if path.name == "onnx_backend.js" else path.name
            shutil.copyfile(path, output / target)
    fetch_runtime(output)
    return found


def fetch_runtime(output: Path) -> None:
    """Puts onnxruntime-web's files into `output`, by npm. Raises GraphError where it fails."""
    if shutil.which("npm") is None:
        raise GraphError(f"npm is needed to fetch {RUNTIME}: install Node.js and try again")
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", "--ignore-scripts", RUNTIME]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        packed = list(Path(folder).glob("*.tgz"))
        if done.returncode or not packed:
            raise GraphError(f"npm could not fetch {RUNTIME}: {done.stderr.strip()[-500:]}")
        with tarfile.open(packed[0]) as archive:
            for name in RUNTIME_FILES:
                member = archive.extractfile(f"package/dist/{name}")
                if member is None:
                    raise GraphError(f"{RUNTIME} holds no dist/{name}")
                (output / name).write_bytes(member.read())
