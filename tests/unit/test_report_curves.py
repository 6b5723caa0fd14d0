"""Tables as curves: each cell at its place on the axis, ours solid, the printed ones dashed."""

import dataclasses
import re
from pathlib import Path

from kdlab.report import curves, html, layout
from kdlab.report.results import Result

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


def result(seed, bleu, **settings):
    return Result(key=f"{seed} {bleu} {settings}", test="wmt20", seed=seed, bleu=bleu, bleu_signature="s", **settings)


def student(seed, bleu, temperature, weight_nll="1"):
    return result(
        seed, bleu, student="slim_1x1", temperature=temperature, settings=f"objective.terms.nll.weight={weight_nll}"
    )


def labels(svg):
    """What every mark says, in order."""
    return re.findall(r"<title>(.*?)</title>", svg)


def legend(svg):
    return re.findall(r'text-anchor="start">(.*?)</text>', svg)


def test_a_published_table_is_drawn_line_by_line_without_what_is_no_score():
    (one,) = layout.read(EXPERIMENTS / "hinton_1x1_wmt20")
    (picture,) = curves.pictures(one, [])
    names = ["Baseline", "KD-only", "KD+NLL"]
    assert legend(picture.svg) == [f"{arch} 1x1, {name}, published" for arch in ("Slim", "Wide") for name in names]
    assert labels(picture.svg)[5:15] == [
        *("25.3", "24.1", "19.3", "8.9", "6.2"),
        *("25.7", "24.5", "22.2", "12.5", "10.4"),
    ]
    assert "200" not in labels(picture.svg)  # the row of weights
    assert picture.svg.count("stroke-dasharray") == 12  # six lines and their legend


def test_ours_are_means_over_seeds_in_the_colour_of_the_printed_line():
    (one,) = layout.read(EXPERIMENTS / "hinton_1x1_wmt20")
    found = [student(seed, bleu, t) for t in ("10", "0.5", "2") for seed, bleu in ((1, 20.0), (2, 21.0))]
    found += [student(1, 3.0, "2", weight_nll="0"), student(1, 4.0, "7")]
    one = dataclasses.replace(one, columns=dict(reversed(one.columns.items())))  # a line is drawn from left to right
    (picture,) = curves.pictures(one, found)
    assert labels(picture.svg).count("20.5 ± 0.7 (2)") == 3 and labels(picture.svg).count("3.0") == 1
    assert "4.0" not in labels(picture.svg)  # no cell of the table
    ours, printed = (
        re.search(rf'stroke="(#\w+)"([^>]*)/>[^\n]*\n[^\n]*>{re.escape(name)}<', picture.svg).groups()
        for name in ("Slim 1x1, KD+NLL, measured", "Slim 1x1, KD+NLL, published")
    )
    assert ours[0] == printed[0] and ours[1] == "" and "dasharray" in printed[1]
    places = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"[^\n]*20\.5', picture.svg)]
    assert places == sorted(places)


def test_a_setting_of_the_rows_is_an_axis_and_two_values_are_none():
    wide, slim = layout.read(EXPERIMENTS / "seq_interpolation_wmt20")
    (picture,) = curves.pictures(wide, [])
    assert labels(picture.svg) == ["33.1", "32.4", "33.2", "32.9"] and legend(picture.svg) == ["published"]
    assert labels(curves.pictures(slim, [])[0].svg) == ["30.6", "30.4", "30.3", "29.4"]
    assert [curves.pictures(one, []) for one in layout.read(EXPERIMENTS / "low_data_wmt20")] == [[], []]


def test_cells_that_are_ambiguous_in_the_table_are_not_drawn():
    (one,) = layout.read(EXPERIMENTS / "hinton_1x1_wmt20")
    found = [student(1, 3.25, "2"), result(1, 4.0, student="slim_1x1", temperature="2", init="x", settings="a=1")]
    found[1] = dataclasses.replace(found[1], settings=found[0].settings)
    assert "3.2" not in labels(curves.pictures(one, found)[0].svg)
    assert "3.2" in labels(curves.pictures(one, found[:1])[0].svg)


def test_styles_of_a_figure_touch_nothing_outside_it():
    (one,) = layout.read(EXPERIMENTS / "hinton_1x1_wmt20")
    shown = html.figure(curves.pictures(one, [])[0])
    styles = re.search(r"<style>(.*?)</style>", shown, re.S)[1]
    selectors = [part.strip() for part in re.findall(r"([^{}]+)\{", styles)]
    assert len(selectors) > 4 and all(selector.startswith("fig") for selector in selectors)
    for used in set(re.findall(r'class="(\w+)"', shown)):
        assert f".{used} " in styles
