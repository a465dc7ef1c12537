"""The picture of a plan: what it says over time, exactly, and that the axes show it."""

from __future__ import annotations

import itertools
import sys
import time
from bisect import bisect
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from lightning_freeze.plan.costs import Held, Size, Timeline, over_time
from lightning_freeze.plan.preview import Step
from lightning_freeze.report import plan_picture as pictures
from lightning_freeze.report.table import human_bytes

SIZES = {"head": Size(10, 40, 84), "body": Size(1000, 2000, 8000), "rest": Size(100, 400, 0)}
HEAD, BODY, ALL = frozenset({"head"}), frozenset({"body", "rest"}), frozenset(SIZES)


def draw_plan(
    path: Path | None,
    trained: Sequence[frozenset[str]],
    sizes: Any,
    epochs: Sequence[int] = (),
    lr: Sequence[dict[str, float]] = (),
    places: Sequence[str] = (),
    **options: Any,
) -> Any:
    """The picture of updates that train these groups, in epochs that begin there."""
    steps = [
        Step(bisect(epochs, u), u, 0, groups, lr[u] if lr else {}, False, places[u] if places else "")
        for u, groups in enumerate(trained)
    ]
    return pictures.draw_plan(path, steps, sizes, **options)


def matrix(trained: Sequence[frozenset[str]], groups: Sequence[str]) -> Any:
    """The oracle: a row a group, a column an update."""
    return np.array([[group in names for names in trained] for group in groups], dtype=float)


def drawn(figure: Any) -> Any:
    """What the picture holds for each row of groups."""
    return np.concatenate([np.asarray(image.get_array()) for image in figure.axes[0].images])


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def names(figure: Any) -> list[Any]:
    """The names of the rows."""
    return list(figure.axes[0].get_yticklabels())


TIMELINES = {
    "rest trains with the body": ([HEAD, BODY, HEAD], Timeline([10, 1100, 10], [40, 2400, 40], [84, 8084, 8084])),
    "all at once": ([ALL, HEAD], Timeline([1110, 10], [2440, 40], [8084, 8084])),
    "an update of nothing": ([frozenset(), HEAD], Timeline([0, 10], [0, 40], [0, 84])),
    "sets that overlap": (
        [HEAD, HEAD | {"rest"}, HEAD | {"body"}],
        Timeline([10, 110, 1010], [40, 440, 2040], [84, 84, 8084]),
    ),
    "nothing": ([], Timeline([], [], [])),
}


@pytest.mark.parametrize(("trained", "expected"), TIMELINES.values(), ids=TIMELINES)
def test_what_a_run_asks_for(trained: list[frozenset[str]], expected: Timeline) -> None:
    assert over_time(trained, SIZES) == expected


def test_state_that_goes_with_what_freezes_is_that_of_what_trains() -> None:
    trained = [HEAD, BODY, HEAD, frozenset[str]()]
    assert over_time(trained, SIZES, Held(leaves=True)).state == [84, 8000, 84, 0]
    assert over_time(trained, SIZES).state == [84, 8084, 8084, 8084]
    assert over_time(trained, SIZES, Held(frozenset({"body"}))).state == [8084] * 4


def test_state_stays_where_its_group_trains_again_soon() -> None:
    trained = [HEAD, BODY, BODY, HEAD, BODY, BODY, BODY, HEAD]
    at_once, later = 8084, 8000
    expected = [84, at_once, at_once, at_once, later, later, later, 84]
    assert over_time(trained, SIZES, Held(leaves=True, unless_within=3)).state == expected


def test_state_that_was_there_before_stays_where_its_group_trains_soon() -> None:
    held = Held(frozenset({"body", "rest"}), leaves=True, unless_within=2)
    assert (
        over_time([HEAD, HEAD | {"body"} - {"rest"}, HEAD], {**SIZES, "body": Size(1, 1, 1000)}, held).state[0] == 1084
    )


@pytest.mark.parametrize("call", [over_time, partial(draw_plan, None)])
def test_a_group_without_a_size(call: Any) -> None:
    with pytest.raises(ValueError, match=r"updates train 'haed', but `sizes` knows only 'head', 'body', 'rest'. Give"):
        call([HEAD, frozenset({"haed"})], SIZES)


def test_no_update_is_no_picture() -> None:
    with pytest.raises(ValueError, match="there is no update to draw: `steps` is empty"):
        draw_plan(None, [], SIZES)


@pytest.mark.parametrize(
    ("count", "total", "said"),
    [(0, 9, "0 %"), (1, 1000, "<1 %"), (1, 8, "12 %"), (999, 1000, ">99 %"), (7, 7, "100 %"), (0, 0, "0 %")],
)
def test_shares_for_people(count: int, total: int, said: str) -> None:
    assert pictures._percent(count, total) == said


@pytest.mark.parametrize("name", ["plan.png", "deep/er/plan.png"])
def test_a_file_is_written(name: str, tmp_path: Path) -> None:
    draw_plan(tmp_path / name, [HEAD, BODY, HEAD], SIZES, epochs=[2], title="A $title")
    assert (tmp_path / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_suffix_says_what_is_written(tmp_path: Path) -> None:
    draw_plan(tmp_path / "plan.svg", [HEAD, BODY, HEAD], SIZES)
    assert "<svg" in (tmp_path / "plan.svg").read_text(encoding="utf-8")


def test_a_short_run_is_drawn_update_by_update() -> None:
    trained = [(HEAD, BODY, ALL, frozenset[str]())[u // 3 % 4 if u % 7 else 3] for u in range(137)]
    figure = draw_plan(None, trained, SIZES, epochs=[50, 100])
    groups, elements, memory, percent = figure.axes
    assert np.array_equal(drawn(figure), matrix(trained, list(SIZES)))
    assert {tuple(image.get_extent()[:2]) for image in groups.images} == {(0, 137)}
    assert [axes.get_xlim() for axes in figure.axes] == [(0, 137)] * 4
    timeline = over_time(trained, SIZES)
    (line,) = (shape.get_data() for shape in elements.patches)
    assert list(line.values) == timeline.elements
    assert list(line.edges) == list(range(138))
    state, gradient = (shape.get_data() for shape in memory.patches)
    assert list(state.values) == timeline.state
    assert list(gradient.values) == [sum(both) for both in zip(timeline.state, timeline.gradient, strict=True)]
    assert list(gradient.baseline) == timeline.state
    assert percent.get_ylim()[1] == pytest.approx(100 * elements.get_ylim()[1] / 1110)


def test_labels_shares_and_counts_stand_beside_their_rows() -> None:
    figure = draw_plan(None, [HEAD, HEAD, HEAD, BODY], SIZES)
    rows = [["75 %", "3"], ["25 %", "1"], ["25 %", "1"]]
    assert texts(figure.axes[0]) == [*(text for row in rows for text in row), "share", "updates"]
    assert [(t.get_text(), t.get_position()[1]) for t in names(figure)] == [("head", 0.5), ("body", 1.5), ("rest", 2.5)]
    assert texts(figure.axes[1])[1] == "at most 1.1 K of 1.11 K (99 %)"
    assert texts(figure.axes[2])[1] == f"at most {human_bytes(8084 + 2400)}"


def covers(figure: Any) -> list[list[float]]:
    """How high the rows are, from those that are covered in part: update by update, from above."""
    return [[*(1 - (shape.get_data().values - shape.get_data().baseline))] for shape in figure.axes[0].patches]


def test_a_row_is_as_high_as_its_learning_rate() -> None:
    trained = [HEAD, HEAD, ALL, ALL, BODY]
    ramp = [{}, {}, {"body": 0.001}, {"body": 0.125}, {"body": 1.0}]
    (body,) = covers(draw_plan(None, trained, SIZES, lr=ramp))
    assert body == pytest.approx([1, 1, 0.1, 0.5, 1])
    assert covers(draw_plan(None, trained, SIZES)) == []


def test_a_factor_above_one_is_the_full_height() -> None:
    body, rest = covers(draw_plan(None, [HEAD, ALL], SIZES, lr=[{"head": 8.0}, {"head": 8.0}]))
    assert body == rest == pytest.approx([1, 0.5])
    assert "×8" in key(draw_plan(None, [HEAD, ALL], SIZES, lr=[{"head": 8.0}, {}]))


def test_a_bin_is_as_high_as_the_mean_of_what_it_trains() -> None:
    trained = [HEAD if u % 2 else BODY for u in range(4000)]
    (head,) = covers(draw_plan(None, trained, SIZES, lr=[{"head": 0.125}] * 4000))
    assert head == pytest.approx([0.5] * 2000)


def key(figure: Any) -> list[str]:
    """The words of the key below the rows."""
    (box,) = [each for each in figure.axes[0].artists if hasattr(each, "offsetbox")]
    return [part.get_text() for part in box.offsetbox.get_children() if hasattr(part, "get_text")]


def test_the_key_names_what_is_there() -> None:
    assert key(draw_plan(None, [HEAD, BODY], SIZES)) == ["trains", "frozen"]
    binned = draw_plan(None, [HEAD if u % 3 else BODY for u in range(3000)], SIZES)
    assert key(binned) == ["trains", "in part of the updates", "frozen"]
    rated = draw_plan(None, [HEAD, BODY], SIZES, lr=[{}, {"body": 0.5}])
    assert key(rated) == ["trains", "frozen", "  height: learning rate", "×1", "×0.1", "×0.01"]


def ribbon(figure: Any) -> list[tuple[float, float]]:
    """Where phases begin and end."""
    found = [shape.get_paths()[0].get_extents() for shape in figure.axes[0].collections if hasattr(shape, "get_paths")]
    return [(box.x0, box.x1) for box in found if box.y1 < 0]


def test_phases_stand_above_the_rows_by_name_where_there_is_room() -> None:
    places = [*["phases[0]"] * 40, *["phases[1].phases[0]"] * 3, *["phases[1].phases[1]"] * 57]
    figure = draw_plan(None, [HEAD] * 100, SIZES, places=places)
    assert ribbon(figure) == [(0, 40), (40, 43), (43, 100)]
    assert [text for text in texts(figure.axes[0]) if "2." in text or "phase" in text] == [
        "phase 1",
        "2.1",
        "phase 2.2",
    ]
    assert figure.axes[0].get_ylim()[1] < 0


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        (
            [f"phases[{u // 50}].phases[{u % 2}]" for u in range(100)],
            [(0, 50), (50, 100)],
        ),  # as one, where it alternates
        ([f"phases[{u % 2}]" for u in range(100)], []),
        (["phases[0]"] * 100, []),
        ([""] * 100, []),
    ],
)
def test_phases_that_would_flicker_are_drawn_as_one_or_not(places: list[str], expected: Any) -> None:
    figure = draw_plan(None, [HEAD] * 100, SIZES, places=places)
    assert ribbon(figure) == expected
    assert (figure.axes[0].get_ylim()[1] < 0) == bool(expected)


def test_a_long_run_is_drawn_in_bins() -> None:
    trained = [HEAD if u % 5 else BODY for u in range(20_003)]  # bins of 11, the last of 5
    figure = draw_plan(None, trained, SIZES)
    shares = drawn(figure)
    assert shares.shape == (3, 1819)
    lengths = np.array([11] * 1818 + [5])
    exact = matrix(trained, list(SIZES))
    assert (shares * lengths).sum(axis=1) == pytest.approx(exact.sum(axis=1))
    for column in (0, 7, 1818):
        assert shares[:, column] == pytest.approx(exact[:, 11 * column : 11 * column + 11].mean(axis=1))
    assert figure.axes[0].get_xlim() == (0, 20_003)
    assert figure.axes[0].images[0].get_extent()[1] == 1819 * 11
    assert "a column is a bin of 11" in figure.axes[2].get_xlabel()
    band, mean = (shape.get_data() for shape in figure.axes[1].patches)
    assert (set(band.baseline), set(band.values)) == ({10}, {1100})
    assert mean.values[0] == pytest.approx((8 * 10 + 3 * 1100) / 11)


@pytest.mark.parametrize(("updates", "columns"), [(1, 1), (2000, 2000), (2001, 1001), (100_000, 2000)])
def test_never_more_than_two_thousand_columns(updates: int, columns: int) -> None:
    made = pictures._columns([1] * updates)
    _, shares, _ = pictures._bins([Step(0, u, 0, ALL) for u in range(updates)], SIZES, made)
    assert shares.shape == (3, columns)
    assert (shares == 1).all()
    assert (made.edges[0], made.edges[-1]) == (0, updates)


def test_what_trains_seldom_is_told_from_what_never_trains() -> None:
    figure = draw_plan(None, [BODY if u == 77 else HEAD for u in range(100_000)], SIZES)
    image = figure.axes[0].images[1]
    seldom, never = image.to_rgba(image.get_array())[0, [1, 0]]
    assert image.get_array()[0, 1] == pytest.approx(1 / 50)
    assert tuple(never) == pytest.approx(to_rgba(pictures.NEVER))
    assert np.abs(seldom - never).max() > 0.2


def test_epochs_are_lines_labelled_sparsely() -> None:
    few = draw_plan(None, [HEAD] * 40, SIZES, epochs=[10, 20, 30, 40])  # with update 40 there is none
    assert texts(few.axes[0])[-3:] == ["epoch 1", "2", "3"]
    for panel in few.axes[:3]:
        assert [line.get_xdata()[0] for line in panel.lines] == [10, 20, 30]
    many = draw_plan(None, [HEAD] * 1000, SIZES, epochs=range(5, 1000, 5))
    assert [t for t in texts(many.axes[0]) if t.startswith("epoch")] == ["epoch 20"]
    assert [line.get_xdata()[0] for line in many.axes[0].lines] == list(range(100, 1000, 100))


@pytest.mark.parametrize("count", [1, 2, 20, 60, 90, 200])
def test_labels_have_room(count: int) -> None:
    """No two names of rows overlap, none is clipped, and those outside families come first."""
    groups = [f"a_rather_long_name_of_a_family_of_layers_of_a_model/{i}" for i in range(count)] + ["head"]
    figure = draw_plan(
        None, [frozenset({each}) for each in groups], {each: Size(1, 4, 8) for each in groups}, title="T"
    )
    shown = names(figure)
    boxes = [t.get_window_extent() for t in shown]
    assert shown[-1].get_text() == "head"
    assert all(above.y0 >= below.y1 for above, below in itertools.pairwise(boxes))
    page = figure.get_tightbbox().transformed(figure.dpi_scale_trans)  # what is written
    every = [
        *boxes,
        *(t.get_window_extent() for axes in figure.axes for t in [*axes.texts, axes.title, axes._left_title]),
    ]
    assert all(box.x0 >= page.x0 and box.x1 <= page.x1 and box.y0 >= page.y0 and box.y1 <= page.y1 for box in every)
    assert len(shown) == count + 1 or (count > 60 and len(shown) >= 30)
    assert page.height / figure.dpi < 14


def test_a_name_is_no_formula() -> None:
    groups = ["re:.*$a_b$.*", "_hidden", "a\\frac"]
    figure = draw_plan(None, [frozenset(groups)], {name: Size(1, 1, 1) for name in groups}, title="$x")
    figure.canvas.draw()
    assert [t.get_text() for t in names(figure)] == groups


def test_a_model_of_nothing_can_be_drawn() -> None:
    draw_plan(None, [frozenset({"all"})], {"all": Size(0, 0, 0)}).canvas.draw()


def test_a_hundred_thousand_updates_of_34_groups_take_little(tmp_path: Path) -> None:
    groups = [f"layers/{i}" for i in range(34)]
    trained = [frozenset({groups[u // 50 % 34], groups[u * 7 // 50 % 34]}) for u in range(100_000)]
    began = time.process_time()
    draw_plan(tmp_path / "long.png", trained, {name: Size(100, 400, 800) for name in groups})
    assert time.process_time() - began < 10  # about 1.5 s on a quiet core
    made = pictures._columns([1] * len(trained))
    counts, *_ = pictures._bins([Step(0, u, 0, each) for u, each in enumerate(trained)], groups, made)
    assert dict(zip(groups, counts, strict=True)) == Counter(name for each in trained for name in each)


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError) as error:
        draw_plan(tmp_path / "plan.png", [HEAD], SIZES)
    assert str(error.value) == (
        "a picture of a plan needs matplotlib, the extra `plot`: pip install 'lightning-freeze[plot]' (in a checkout: "
        "pip install -c constraints.txt -e '.[plot]')."
    )
    assert not list(tmp_path.iterdir())
