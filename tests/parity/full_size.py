"""Published sizes against published code: `python -m tests.parity.full_size FAMILY.npz...`.

Each file is made by `make/FAMILY_golden.py --full SECONDS FAMILY.npz` in an environment with the
published code (see `make/oracle.py`). Prints one row for each; the exit status is 1 where one is
beyond the bounds.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from tests.parity.golden import Golden

FRAMES, SOUND, GRADIENT = 0.999, 1e-4, 0.01  # share of equal frames; difference; relative norm
NOTHING = 1e-6  # of the largest norm: below it a gradient is rounding


def row(path: Path) -> tuple[str, bool]:
    """A file's row of the table, and whether it is within the bounds."""
    golden = Golden(path)
    same, sound = golden.same_frames(), golden.sound_error()
    latent = float(np.abs(golden.output.latent[0] - golden.arrays["latent"]).max())
    norms = golden.gradient_norms()
    largest = max(theirs for _, theirs in norms.values())
    apart = max(
        abs(ours - theirs) / theirs for ours, theirs in norms.values() if theirs > NOTHING * largest
    )
    cells = (
        path.stem,
        f"{golden.arrays['codes'].shape[0]} x {golden.arrays['codes'].shape[-1]}",
        f"{same.sum()} of {len(same)}",
        f"{latent:.1e}",
        f"{sound:.1e}",
        f"{len(norms)}",
        f"{100 * apart:.2g} %",
    )
    good = same.mean() >= FRAMES and sound < SOUND and apart < GRADIENT
    return "| " + " | ".join(cells) + " |", good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    names = "family | frames x levels | frames with equal codes | latent | audio of equal codes"
    print(f"| {names} | gradients | their norms |\n" + "|---" * 7 + "|")
    good = True
    for path in parser.parse_args().files:
        cells, fits = row(path)
        print(cells, flush=True)
        good &= fits
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
