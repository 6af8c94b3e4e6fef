"""What the golden-making scripts share: seeded weights into a torch module, results to a file.

These scripts run in an environment of their own, with PyTorch and the published code; each
script's docstring names what it imports. Run them from this folder.
"""

from __future__ import annotations

import argparse
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import seeded

DATA = Path(__file__).parents[1] / "data"


def without(*modules: str) -> None:
    """Empty modules in place of imports that the published models never call (torchaudio, ...)."""
    for name in modules:
        sys.modules.setdefault(name, types.ModuleType(name))


def hide(*modules: str) -> None:
    """Has imports of installed modules fail, as if they were absent (a broken torchaudio)."""
    for name in modules:
        sys.modules[name] = None


def arguments(doc: str | None, checkout: bool = False) -> argparse.Namespace:
    """The command line of every script: `--full SECONDS OUT.npz`; with `checkout` a folder of
    published code first, which is put on the path."""
    parser = argparse.ArgumentParser(description=doc)
    if checkout:
        parser.add_argument("checkout")
    parser.add_argument("--full", nargs=2, metavar=("SECONDS", "OUT"))
    found = parser.parse_args()
    if checkout:
        sys.path.insert(0, found.checkout)
    return found


def clip(full: list[str] | None, frames: int, hop: int, rate: int) -> tuple[float, torch.Tensor]:
    """The test clip -> (its seconds, whole frames of it [1, N]): `frames` of them, or SECONDS."""
    seconds = float(full[0]) if full else frames * hop / rate
    wav = seeded.codec_wav(seconds, rate)
    return seconds, torch.from_numpy(wav[:, : wav.shape[1] // hop * hop])


def fill(
    module: torch.nn.Module, keep: tuple[str, ...] = (), published=lambda name: name
) -> dict[str, list[int]]:
    """Seeded weights into every tensor but those whose last name is in `keep`; names -> shapes.

    `published` gives the name in the checkpoint, where the code in memory has another.
    """
    state = module.state_dict()
    for name, value in state.items():
        if name.rsplit(".", 1)[-1] not in keep:
            weights = seeded.codec_tensor(published(name), tuple(value.shape))
            value.copy_(torch.from_numpy(weights))
    module.load_state_dict(state)
    return {published(name): list(value.shape) for name, value in state.items()}


def kept(module: torch.nn.Module, keep: tuple[str, ...]) -> dict[str, list]:
    """The published values of the tensors that `fill` leaves as they are."""
    state = module.state_dict()
    return {n: value.tolist() for n, value in state.items() if n.rsplit(".", 1)[-1] in keep}


def gradient_norms(module: torch.nn.Module, prefix: str = "") -> dict[str, float]:
    """The norm of every parameter's gradient, by name; parameters without one are left out."""
    return {
        prefix + name: float(parameter.grad.norm())
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def write(family: str, full: list[str] | None, meta: dict, **arrays) -> None:
    """One `.npz`, the family's golden or OUT: arrays, and everything else as JSON under `meta`."""
    path = Path(full[1]) if full else DATA / f"{family}.npz"
    arrays = {
        name: value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        for name, value in arrays.items()
    }
    np.savez_compressed(path, meta=json.dumps(meta), **arrays)
    codes = arrays["codes"]
    print(f"{path}: {path.stat().st_size} bytes, codes {codes.shape}, {len(np.unique(codes))} used")
