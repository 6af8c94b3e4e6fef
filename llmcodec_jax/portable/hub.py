"""A codec as a folder one can upload: weights, description, a card and an example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmcodec_jax import types
from llmcodec_jax.codec import store
from llmcodec_jax.codec.inference import Codec
from llmcodec_jax.evaluation.reports import plus_minus
from llmcodec_jax.ops import files

EXAMPLE = '''"""Encodes and decodes an audio file with the codec beside this file.

python example.py in.wav out.wav     # after: pip install llmcodec-jax
"""

import sys
from pathlib import Path

import llmcodec_jax
import soundfile

codec = llmcodec_jax.load_codec(Path(__file__).parent)  # or "hf:OWNER/NAME"
wav, rate = soundfile.read(sys.argv[1])
codes = codec.encode(wav, rate)  # int32 {shape}
print(codes.shape, codes[:10].tolist())
soundfile.write(sys.argv[2], codec.decode(codes), codec.sample_rate)
'''
SCORES = {"mel": "↓", "stft": "↓", "waveform": "↓", "pesq": "↑", "stoi": "↑", "f0corr": "↑"}


def export(
    source: str, module: types.Codec, variables: Mapping, output: Path,
    licence: str, reports: Mapping[str, Mapping[str, Any]],
) -> None:  # fmt: skip
    """Writes the folder `output`, which is there whole or not at all.

    `source`: the CODEC that was asked for; a card in its folder goes along. `licence`: of the
    weights, as the Hub names licences ("cc-by-4.0"); "" leaves it unsaid. `reports`: by the name of
    its file, what `evaluate reconstruction` wrote.
    """
    codec, name = Codec(module, dict(variables)), store.short_name(source)
    with files.building(output) as folder:
        store.save_codec_folder(folder, module, variables)
        (folder / "README.md").write_text(
            card(codec, name, licence, reports, earlier_card(source)), "utf-8"
        )
        shape = "[T]" if codec.levels == 1 else f"[T, {codec.levels}]"
        (folder / "example.py").write_text(EXAMPLE.replace("{shape}", shape), "utf-8")


def earlier_card(source: str) -> str:
    """The text of the card that lies in a codec's folder, without its front matter; "" if none."""
    path = Path(source)
    folder = path if path.exists() else store.SHIPPED.get(source, path)
    if not (folder / "README.md").is_file():
        return ""
    text = (folder / "README.md").read_text("utf-8", "replace")
    return (
        text.split("---\n", 2)[2] if text.startswith("---\n") and text.count("---\n") > 1 else text
    )


def card(
    codec: Codec, name: str, licence: str,
    reports: Mapping[str, Mapping[str, Any]], earlier: str = "",
) -> str:  # fmt: skip
    """The model card: front matter, what the codec is, its scores, the token format, use."""
    about = codec.describe()
    front = ["---", "library_name: llmcodec-jax", "tags: [audio, speech, codec, tokenizer]"]
    front += [f"license: {licence}"] if licence else []
    said = f"The weights are under {licence}." if licence else "Not stated when this was exported."
    sections = [
        "\n".join([*front, "---", "", f"# {name}"]),
        f"A neural audio codec ({about['architecture']}): {about['sample_rate']:,} Hz, "
        f"{about['levels']} x {about['codebook_size']:,} codes, {about['frame_rate']:g} frames or "
        f"{about['bits_per_second']:,.0f} bits a second. Digest `{about['digest']}`.",
        "## Use\n\n```\npip install llmcodec-jax\n```\n```python\nimport llmcodec_jax\n\n"
        'codec = llmcodec_jax.load_codec("hf:OWNER/NAME")  # or this folder\n'
        "codes = codec.encode(wav, sample_rate)\nwav = codec.decode(codes)\n```\n\n"
        "`example.py` does it with files.",
        _scores(reports),
        _tokens(codec),
        f"## Licence\n\n{said}",
    ]
    if earlier:
        sections.append("## The card it came with\n\n" + _lowered(earlier))
    return "\n\n".join(section.strip() for section in sections if section) + "\n"


def _scores(reports: Mapping[str, Mapping[str, Any]]) -> str:
    if not reports:
        return "## Scores\n\nNone were given when this was exported."
    head = [f"{name} {better}" for name, better in SCORES.items()]
    lines = ["| | clips | " + " | ".join(head) + " |", "|---" * (len(head) + 2) + "|"]
    for name, report in reports.items():
        cells = [_interval(report, metric) for metric in SCORES]
        lines.append(f"| {name} | {len(report['items'])} | " + " | ".join(cells) + " |")
    note = "Means and 95 % intervals over clips, by `llmcodec evaluate reconstruction`."
    return "## Scores\n\n" + "\n".join(lines) + f"\n\n{note}"


def _interval(report: Mapping[str, Any], metric: str) -> str:
    return plus_minus(report["mean"].get(metric), report["interval"].get(metric))


def _tokens(codec: Codec) -> str:
    size, levels = codec.codebook_size, codec.levels
    shape = "`[T]`" if levels == 1 else f"`[T, {levels}]`"
    token = "Code `i` is the language model's token `<CODEC_i>`"
    if levels > 1:
        token += f"; code `i` of level `q` is `<CODEC_{{q*{size}+i}}>`"
    return (
        f"## Tokens\n\nCodes are int32 {shape} in [0, {size:,}), a frame for {codec.hop} samples: "
        f"`T = ceil(samples / {codec.hop})`. {token}. `llmcodec encode` writes one `.npz` a clip "
        "with `codes`, `sample_rate` and `num_samples`."
    )


def _lowered(text: str) -> str:
    """Markdown with every heading two levels lower, code blocks left alone."""
    lines, fenced = [], False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        lines.append(f"##{line}" if line.startswith("#") and not fenced else line)
    return "\n".join(lines)


def read_reports(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Reports of `evaluate reconstruction` by their files' names. Raises EvaluationError."""
    from llmcodec_jax.evaluation import comparison
    from llmcodec_jax.evaluation.reports import EvaluationError

    found = {}
    for path in paths:
        report = comparison.read([path]).get("reconstruction")
        if report is None:
            raise EvaluationError(f"{path}: not a report of `evaluate reconstruction`")
        found[path.stem] = report
    return found
