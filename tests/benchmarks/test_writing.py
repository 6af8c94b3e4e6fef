"""`benchmarks writing`: a row for every number of heads and clips."""

from llmcodec_jax.benchmarks import __main__ as benchmarks


def test_every_number_of_heads_and_clips_has_its_row(capsys):
    sizes = "--width 64 --layers 1 --rows 12 --prompt 8 --passes 2 --repeats 2".split()
    assert benchmarks.main(["writing", *sizes, "--heads", "1", "3", "--batch", "1", "2"]) == 0
    _, *rows = capsys.readouterr().out.strip().splitlines()
    table = [tuple(map(float, row.split())) for row in rows]
    assert [row[:2] for row in table] == [(1, 1), (1, 2), (3, 1), (3, 2)]
    assert all(reading > 0 and writing > 0 for _, _, reading, writing in table)
