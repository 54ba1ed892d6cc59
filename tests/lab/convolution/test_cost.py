"""The cost of the convolution by hand: measured on every shape, and written into its page."""

import main
from lab.convolution import cost


def test_the_costs_are_of_all_shapes_of_the_presets():
    rows = cost.layer_costs("fp32", repeats=1, batch_size=2)
    assert len({row.shape for row in rows if row.torch_ms > 0 and row.own_ms > 0}) > 20
    for word in ("stride 2", "dilation 2", "groups 96", "1x1"):
        assert any(word in row.shape for row in rows), word
    assert {"sprint", "teacher", "accurate"} <= {name for row in rows for name in row.presets.split(", ")}


def test_the_page_has_the_costs(tmp_path, monkeypatch, capsys):
    made = [cost.Cost("3->8 3x3 at 4x4", "sprint", 1.0, 3.0), cost.Cost("the whole network", "sprint", 2.0, 3.0)]
    monkeypatch.setattr(cost, "layer_costs", lambda *_: made[:1])
    monkeypatch.setattr(cost, "network_costs", lambda *_: made[1:])
    monkeypatch.setattr(cost, "PAGE", tmp_path / "conv2d.md")
    (tmp_path / "conv2d.md").write_text("before\n" + "\n".join(cost.MARKERS) + "\nafter\n")
    assert main.main(["lab", "conv2d", "--docs"]) == 0
    page, printed = (tmp_path / "conv2d.md").read_text(), capsys.readouterr().out
    assert float(printed.splitlines()[0].rsplit(maxsplit=1)[1]) < 1e-5  # the homework's case
    for text in (page, printed):
        assert "| 3->8 3x3 at 4x4 | sprint | 1.00 ms | 3.00 ms | 3.0 |" in text
        assert "3.0 times as long as torch's (the worst: 3->8 3x3 at 4x4), the whole network 1.5 times" in text
    assert page.startswith("before")
    assert page.endswith("after\n")
