"""docs/model.md: its table is the code's, its formulas are such as GitHub renders."""

import re

import pytest

from conftest import ROOT
from lab.measurements import gradients, gradients_page, layers
from learning.presets import PRESETS
from limits.constraints import check
from model import Net
from utils import count_mult_adds, count_parameters

PAGE = ROOT / "docs" / "model.md"


def between(markers: tuple[str, str]) -> str:
    return PAGE.read_text(encoding="utf-8").split(markers[0])[1].split(markers[1])[0].strip()


def test_the_table_is_current():
    assert between(layers.MARKERS) == layers.table("sprint"), "./run.sh lab layers --docs"


@pytest.mark.parametrize("preset", [name for name, preset in PRESETS.items() if not preset.needs_weights])
def test_rows_add_up(preset):
    rows = layers.rows(preset)
    net = Net(3, 10, **PRESETS[preset].net)
    assert sum(row.parameters for row in rows) == count_parameters(net)
    assert sum(row.mult_adds for row in rows) == count_mult_adds(net, 3, (32, 32))
    fields = [row.receptive_field for row in rows if row.receptive_field]
    assert fields == sorted(fields)
    (known,) = (c.value for c in check(net) if c.name == "receptive field")
    assert known.startswith(f"{fields[-1]} ")


def test_rows_of_known_layers():
    rows = {row.path: row for row in layers.rows("sprint")}
    assert rows["C1.0"].shape == (32, 15, 15)
    assert rows["C1.0"].receptive_field == 4
    assert rows["C3.0.conv"].parameters == 32 * 64 * 9
    assert rows["C3.0.conv"].mult_adds == 32 * 64 * 9 * 9
    assert rows["C3.0.conv"].what == "dense 3x3, dilation 2"
    assert "+ r" in rows["C4.0.norm"].formula


def formulas() -> list[str]:
    text = re.sub(r"```.*?```", "", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r"`[^`]*`", "", text)
    blocks = re.findall(r"\$\$(.+?)\$\$", text, re.DOTALL)
    lines = re.sub(r"\$\$.+?\$\$", "", text, flags=re.DOTALL)
    assert not any(line.count("$") % 2 for line in lines.splitlines()), "a formula that does not end on its line"
    return blocks + re.findall(r"\$([^$\n]+)\$", lines)


def test_formulas_are_whole_and_keep_out_of_markdowns_way():
    from matplotlib.mathtext import MathTextParser

    found = formulas()
    assert len(found) > 60
    parser = MathTextParser("path")
    for formula in found:
        parser.parse(f"${formula.strip()}$")  # raises where braces or commands are wrong
        # What Markdown would take for its own before the formula is looked at: \\, \{, \|, *, and }_ (which opens emphasis).
        assert not re.search(r"\\[^a-zA-Z ]|\*|\}_|\|", formula), formula


def test_displayed_formulas_stand_alone():
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    for i, line in enumerate(lines):
        if "$$" in line:
            assert line.startswith("$$")
            assert line.endswith("$$")
            assert not lines[i - 1].strip()
            assert not lines[i + 1].strip()


def test_the_gradients_are_there():
    text = between(gradients_page.MARKERS)
    for name in gradients.VARIANTS:
        assert name in text
    assert (PAGE.parent / "gradients.png").stat().st_size > 10_000
