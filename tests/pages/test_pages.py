"""Pages and their figures: hostile names stay text, a few outliers do not flatten a chart."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from llmcodec_jax.pages import html, plots

HOSTILE = (
    "<script>alert(1)</script>",
    "a & b \"c\" 'd'",
    "$x^{$",
    "_hidden",
    "two\nlines\x07",
    "not text \udcff",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text(tmp_path, name):
    wav = 0.1 * np.sin(np.arange(4000))
    figure = plots.spectrograms({name: wav, "reference": wav}, 16_000)
    parts = [
        html.table([name], [[name], [html.strong(name)], [html.with_note(name, name)]]),
        html.quote(name),
        html.paragraph(name, "warn"),
        html.details(name, html.code(name)),
        html.picture(figure, name),
        html.player(wav, 16_000, name),
    ]
    page = html.write(tmp_path / "page.html", name, name, [(name, "".join(parts))]).read_text()
    assert "<script" not in page
    assert page.count("alert(1)") in (0, page.count("&lt;script&gt;alert(1)&lt;/script&gt;"))
    assert name == html.text(name) or name not in page


def test_labels_of_figures_are_shown_as_they_are():
    figure, axis = plt.subplots()
    for name in HOSTILE:
        axis.plot([1, 2], label=plots.literal(name))
    shown = [text.get_text() for text in axis.legend().get_texts()]
    figure.canvas.draw()  # would raise for mathematics that is none
    plt.close(figure)
    assert len(shown) == len(HOSTILE)
    assert r"\$x^{\$" in shown


def test_outliers_do_not_flatten_a_chart():
    values = [1 + 0.01 * (i % 7) for i in range(200)]
    assert plots.robust_limits([values]) is None
    low, high = plots.robust_limits([[*values, 5000.0]])
    assert 0.9 < low < 1
    assert 1.06 < high < 1.2
    low, high = plots.robust_limits([[*values, 5000.0], [3.0] * 50])
    assert high > 3
    assert plots.robust_limits([[2.0, 2.0]]) is None
    rows = [{"step": i, "loss/a": v} for i, v in enumerate([*values, 5000.0])]
    ((title, figure),) = plots.curves(rows, {"losses": ["loss/a", "loss/none"], "empty": ["x"]})
    assert title == "losses (1 points beyond)"
    assert figure.axes[0].get_ylim()[1] < 1.2
    plt.close(figure)
