"""The unattended benchmark: a report after every row, whatever stops it."""

import json
import sys
import time

import jax
import pytest

from llmcodec_jax.benchmarks import gpu

SECTIONS = ["products", "step", "codec", "blocks", "fused and plain", "published"]


def test_a_report_is_whole_after_every_row_and_tells_what_is_missing(tmp_path):
    output = tmp_path / "report.json"
    report = gpu.Report(output, time.monotonic() + 60)

    def rows():
        yield {"what": "one", "seconds": 0.5, "tflop": 2.0, "clips_per_second": 20.0, "mfu": 0.4}
        assert json.loads(output.read_text())["sections"]["x"][0]["what"] == "one"
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nmore")

    found = report.add("x", rows())
    assert found[1] == {"what": "the rest", "problem": "out of memory"}
    late = gpu.Report(output, time.monotonic() - 1)
    assert "no time was left" in late.add("y", iter([{"what": "z"}]))[0]["problem"]
    lines = gpu.table(report.content).splitlines()
    assert lines[2] == "| one | 0.5 | 20 | 4 | 0.4 |  |"
    assert lines[3] == "| the rest: out of memory |  |  |  |  |  |"


def test_a_script_of_other_code_is_asked_for_the_same_sizes(tmp_path):
    script = tmp_path / "other.py"
    script.write_text(
        "import json, sys\n"
        "given = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n"
        "if given['--part'] == 'codec': sys.exit('no such codec')\n"
        "print('chatter')\n"
        "print(json.dumps({'step_seconds': int(given['--batch']) / 2}))\n"
    )

    class Config:
        class data:  # noqa: N801
            clip_seconds = 4.0

    sizes = gpu.Sizes(Config, batches=(4, 10), codec_batches=(1,))
    assert list(gpu.published(sizes, str(script), sys.executable)) == [
        {"what": "published step, batch 4", "step_seconds": 2.0},
        {"what": "published step, batch 10", "step_seconds": 5.0},
        {"what": "published codec, batch 1", "problem": "no such codec"},
    ]


@pytest.mark.slow
def test_the_command_at_toy_sizes(tmp_path, capsys):
    output = tmp_path / "report.json"
    assert gpu.main(["--output", str(output), "--toy", "--minutes", "30"]) == 0
    content = json.loads(output.read_text())
    assert list(content["sections"]) == SECTIONS[:-1]
    rows = [row for section in content["sections"].values() for row in section]
    assert not [row for row in rows if "problem" in row]
    step = {row["what"]: row for row in content["sections"]["step"]}
    assert len(step) == 4
    assert step["step, whole, batch 2, lm.remat never"]["mfu"] > 0
    assert capsys.readouterr().out.count("\n") == len(rows) + 2
