"""The codecs that are read here: rate, bits, parameters, licence, and whether they are cached.

python -m llmcodec_jax.codecs [--markdown]
"""

from __future__ import annotations

import argparse
import sys

from llmcodec_jax.codec import cards, registry, store


def table() -> str:
    """One line for each card, columns aligned."""
    rows = [cards.COLUMNS, *(cards.row(card) for card in cards.CARDS)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(cards.COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--markdown", action="store_true", help="the section of docs/codecs.md")
    args = parser.parse_args(argv)
    if args.markdown:
        print(cards.markdown())
        return 0
    print(table())
    shipped = ", ".join(store.SHIPPED)
    print(f"\narchitectures: {', '.join(registry.FAMILIES)}; shipped: {shipped} (docs/mini.md)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
