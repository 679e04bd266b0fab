"""Settings have a range: outside it one line, inside it every claim is judged by numbers, skipped or reported."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from dixit.common import DixitError, rng, salted
from dixit.config import build, read_tree
from eval.dynamics.find import find_probe, probe_names
from eval.dynamics.probe import Claim, bar_if, only_if, reached, save_figure, skipped, table
from eval.dynamics.ranges import OneOf, Within, check_settings, legitimate
from eval.dynamics.running import checked

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def rising(low: float, high: float, least: int, most: int) -> st.SearchStrategy[tuple[float, ...]]:
    """Lists of different numbers with two decimals, sorted."""
    whole = st.integers(round(100 * low), round(100 * high))
    lists = st.lists(whole, min_size=least, max_size=most, unique=True)
    return lists.map(lambda x: tuple(n / 100 for n in sorted(x)))


def some(*values: Any, least: int = 0) -> st.SearchStrategy[tuple[Any, ...]]:
    """Some of these values, in this order."""
    return st.sets(st.sampled_from(values), min_size=least).map(lambda x: tuple(v for v in values if v in x))


# What makes TINY run in a second or less, and what is drawn, by probe.
SMALL: dict[str, tuple[dict[str, Any], dict[str, st.SearchStrategy[Any]]]] = {
    "bias_free": (
        {"points": 20, "hidden": 4},
        {"slopes": rising(0, 0.9, 1, 3), "widths": some(2, 5, 8, 61, least=1), "depths": some(3, 5),
         "steps": st.sampled_from([1, 40]), "random_steps": st.sampled_from([1, 30])}),
    "curricula": (
        {"dimensions": (32,), "time": 0.5, "points": 256, "dimension": 16, "lottery_time": 2.0, "test": 16},
        {"ode_runs": st.integers(1, 2), "runs": st.integers(2, 3), "lottery_widths": some(4, 6, 8, least=1),
         "lottery_noises": rising(0.02, 0.5, 1, 2), "widths": some(1, 4, least=1), "hidden": st.integers(1, 3),
         "hard": some((0.5, 1.0), (1.0, 2.0))}),
    "gating": (
        {"long": 4, "short": 4, "hidden": 50, "fitted": 0.57},
        {"runs": st.integers(1, 2), "alphas": some(0.1, 0.57, least=1).map(lambda x: x if 0.57 in x else (*x, 0.57)),
         "long_alphas": rising(0.2, 1, 1, 2)}),
    "geometry": (
        {"hidden": 50, "steps": 40, "flow_steps": 20, "untrained": 50},
        {"input_stds": st.sampled_from([(0.01, 2.0), (0.02, 0.3, 3.0)]), "penalties": some(0.1, 0.4)}),
    "maslow": (
        {"sweep_similarities": 11, "similarities": 11, "inputs": 50, "sgd_time": 1.0, "sweep_dt": 4.0},
        {"dormancies": some(1e-5, 0.002, 0.005, 0.05, 0.3, least=1), "sgd_similarities": rising(0, 1, 1, 2),
         "time": st.sampled_from([1.0, 20.0]), "sweep_time": st.sampled_from([1.0, 20.0]),
         "eta": st.sampled_from([0.1, 1.0])}),
    "ocs": (
        {"hidden": 8, "steps": 100, "deep_steps": 60},
        {"rhos": rising(0, 0.9, 0, 3), "depths": some(2, 3, 5), "mode_init": st.sampled_from([1e-5, 0.01]),
         "lr": st.sampled_from([0.001, 0.05]), "every": st.integers(1, 20)}),
    "rich": (
        {"steps": 80, "every": 10, "inputs": 20, "points": 100, "test_points": 100, "hidden": 10, "early": 5,
         "late": 10, "student_steps": 10, "student_lr": 0.0005},
        {"deltas": rising(-6, 6, 1, 2), "corner_deltas": rising(-6, 6, 1, 2), "wide_deltas": rising(-4, 4, 1, 2),
         "wide": st.integers(1, 3), "dimensions": st.integers(2, 4), "teacher": st.integers(2, 3),
         "grid_taus": rising(0.05, 3, 1, 2), "grid_deltas": rising(-2, 2, 1, 2)}),
    "rich_applied": (
        {"levels": 2, "hidden": 8, "grammar_steps": 10, "test_sentences": 20, "modulus": 11, "grok_steps": 5,
         "grok_every": 2, "width": 4, "units": 4},
        {"alphas": rising(0.1, 9, 0, 2).map(lambda x: tuple(sorted({1.0, *x}))), "sizes": some(2, 30, 60, least=1),
         "grok_alphas": rising(0.1, 9, 0, 2)}),
    "teacher_student": (
        {"size": 100, "time": 3.0, "early": 1.0, "switch": 2.0, "map_points": 3, "map_time": 2.0,
         "map_switches": (10.0, 11.0), "simulated_switch": 2.0, "every": 50, "simulated_time": 2.0},
        {"runs": st.integers(2, 3), "map_runs": st.integers(1, 2), "idle": rising(1, 9, 2, 3),
         "simulated_similarity": st.sampled_from([0.3, 0.7])}),
    "unimodal": (
        {"steps": 500, "relu_steps": 950, "deep_steps": 600, "deep_start": 0.2, "deep_time": 20.0, "sample_steps": 20,
         "deep_hidden": 4, "hidden": 20, "relu_hidden": 20, "every": 5},
        {"ratios": rising(1.2, 2, 1, 1), "rhos": rising(0, 0.4, 1, 2), "relu_rhos": rising(0, 0.4, 1, 1),
         "exponents": some(0.5, 1.5, 2.5), "variances": some(0.7, 1.0, 2.0, least=1), "depth": st.integers(2, 4),
         "samples": some(5, 30, 100, least=1)}),
}


def run_small(name: str, changes: dict[str, Any], seeds: int) -> list[Claim]:
    """The claims of a small run with these changes, which must be legitimate and judge by numbers."""
    probe, small = find_probe(name), SMALL[name][0]
    chosen = dataclasses.replace(probe.TINY, **small | changes)
    check_settings(chosen)
    probe.check(chosen)
    with tempfile.TemporaryDirectory() as folder:
        claims, figure = probe.run(chosen, seeds, Path(folder))
    rows = [claim.row() for claim in claims]
    assert [row["claim"] for row in rows if row["kind"] != "skip" and row["measured"] is None] == []
    assert all(row["source"] for row in rows if row["kind"] == "skip")
    assert "NaN" not in table(rows) and figure.axes
    return claims


@pytest.mark.parametrize("name", probe_names())
def test_inside_the_range_no_traceback_and_no_nan(name):
    @settings(max_examples=2, derandomize=True, deadline=None, database=None, phases=[Phase.generate])  # no shrinking
    @given(changes=st.fixed_dictionaries(SMALL[name][1]), seeds=st.integers(1, 2))
    def run(changes: dict[str, Any], seeds: int) -> None:
        if "input_stds" in changes:
            changes["context_stds"] = (0.5,) * len(changes["input_stds"])
        run_small(name, changes, seeds)

    run()


@pytest.mark.parametrize(("name", "changes"), [
    ("bias_free", {"widths": (2000,), "slopes": (0.9,), "gain": 1.0, "steps": 20, "random_steps": 30}),
    ("bias_free", {"dimensions": 20, "points": 80, "shift": 1.5, "random_lr": 0.1, "widths": (2, 60), "steps": 20}),
    ("unimodal", {"ratios": (1.68,), "depth": 4, "rhos": (0.14, 0.17)}),
    ("rich", {"hidden": 70, "grid_taus": (0.05,), "grid_deltas": (-2.0, 2.0)}),
    ("rich", {"deltas": (6.0,), "lr": 0.0001, "steps": 40})])
def test_settings_that_once_diverged_run_to_the_end(name, changes):
    """Not left to hypothesis, whose draws follow the source of the test."""
    assert [claim.name for claim in run_small(name, changes, 1) if not claim.holds] == []


def test_a_figure_without_a_positive_value_on_a_logarithmic_axis_can_be_saved(tmp_path):
    """Of geometry, where no network has learned in so few steps."""
    probe = find_probe("geometry")
    _, figure = probe.run(dataclasses.replace(probe.TINY, **SMALL["geometry"][0]), 1, tmp_path)
    save_figure(figure, tmp_path / "figure")
    assert (tmp_path / "figure.png").stat().st_size > 0


@pytest.mark.parametrize("name", probe_names())
def test_every_setting_has_a_range_and_defaults_and_configs_are_in_it(name):
    probe = find_probe(name)
    assert set(legitimate(probe.Settings)) == {field.name for field in dataclasses.fields(probe.Settings)}
    configs = [build(probe.Settings, read_tree(path)) for path in (ROOT / "configs/dynamics").glob(f"{name}_*.yaml")
               if path.stem.rpartition("_")[0] == name]
    for one in (probe.Settings(), probe.TINY, *configs):
        check_settings(one)
    probe.check(probe.TINY)


@pytest.mark.parametrize(("name", "change", "says"), [
    ("ocs", "hidden=6", r"hidden is 6; choose a number in \[8, 1000\]"), ("ocs", "rhos=[0.3,0.1]", "sort it"),
    ("ocs", "rhos=[1.0]", "rhos is"), ("ocs", "images=[minst]", "'mnist'"), ("ocs", "every=100", "at most 50"),
    ("bias_free", "widths=[]", r"widths is \[\]; choose a list"), ("unimodal", "ratios=[1.0]", "ratios is"),
    ("unimodal", "ratios=[0.5]", "ratios is"), ("unimodal", "rhos=[0.95]", "steps is 1200; steps of this size"),
    ("unimodal", "depth=4", "deep_steps is 1200; steps of this size"),
    ("unimodal", "every=100", "every is 100; records"),
    ("unimodal", "sample_lr=0.09,dimensions=200", "sample_lr is 0.09; steps"), ("bias_free", "every=100", "at most 40"),
    ("rich", "hidden=400", "student_lr is 0.005; steps of students"),
    ("rich", "grid_deltas=[-2.0,2.0],grid_taus=[0.05],hidden=50", "student_lr is 0.005; steps of students"),
    ("unimodal", "exponents=[1.9]", "at least 0.2"), ("rich", "corner_deltas=[]", "corner_deltas is"),
    ("rich", "steps=4001", "a multiple of 4 every = 160"), ("rich", "student_deltas=[-1,0.1,1]", "student_deltas"),
    ("gating", "alphas=[0.57,0.5700001]", "alike to six digits"), ("gating", "alphas=[0.02,0.57]", "alphas is"),
    ("rich_applied", "levels=4", "at most 10000000"), ("gating", "alphas=[0.3]", "fitted is 0.57"),
    ("gating", "long=6", "a multiple of 4"),
    ("rich_applied", "alphas=[2.0]", "1 must be among them"), ("rich_applied", "sizes=[100000]", "13122 sentences"),
    ("maslow", "pairs=[[1,1,2,3]]", "four different classes"), ("maslow", "dt=1.5", "choose at most 1"),
    ("maslow", "mixtures=[0,0.5,0.9]", "end with 1"),
    ("geometry", "hidden=200,input_stds=[0.01,4.0]", "flow_lr is 0.0012; with a frozen"),
    ("geometry", "input_stds=[0.1,3]", "0.02 at most"), ("geometry", "context_stds=[0.5,0.5,0.5]", "choose 2 numbers"),
    ("curricula", "points=1000", "a power of 2"), ("teacher_student", "time=5", "more than early = 10")])
def test_outside_the_range_one_line_names_setting_and_remedy(name, change, says):
    probe = find_probe(name)
    tiny = {field.name: getattr(probe.TINY, field.name) for field in dataclasses.fields(probe.TINY)}
    with pytest.raises(DixitError, match=says) as error:
        checked(probe, tiny | read_tree(None, tuple(re.split(r",(?=[a-z])", change))))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "change", "data"), [
    ("ocs", "images=[mnist]", "mnist"), ("maslow", "", "fashion-mnist"), ("curricula", "images=[cifar10]", "cifar10"),
    ("rich_applied", "images=100", "cifar10"), ("unimodal", "", "mnist")])
def test_missing_images_are_told_before_anything_is_computed(tmp_path, monkeypatch, name, change, data):
    monkeypatch.setenv("DIXIT_CACHE", str(tmp_path))
    with pytest.raises(DixitError, match=f"asset {data} .* python -m dixit.data.assets {data}"):
        checked(find_probe(name), read_tree(None, (change,) if change else ()))


def test_ranges_of_numbers_lists_and_words():
    @dataclasses.dataclass(frozen=True)
    class Free:
        rate: float = 1.0
        any: float = -1.0

    check_settings(Free(any=-5.0))
    with pytest.raises(DixitError, match="rate is -1.0"):
        check_settings(Free(rate=-1.0))
    assert Within("[0, 1]").rising and OneOf(("a",)).words == ("a",)


def test_claims_without_a_bar_or_a_measurement_cannot_fail_and_say_why():
    bad = Claim("x", 1.0, np.nan, 0.1)
    assert bar_if(True, "why", [bad]) == [bad] and only_if(True, "why", [bad]) == [bad] and not bad.holds
    (report,), (skip,) = bar_if(False, "no theory", [Claim("x", 1.0, 3.0)]), only_if(False, "too short", [bad])
    assert report.kind == "report" and report.source == "no bar: no theory" and report.holds
    assert skip == skipped("x", "too short") and skip.holds and bar_if(False, "other", [skip]) == [skip]
    assert "| x |  |  |  |  | skipped | skipped: too short |" in table([skip.row()])
    assert reached(np.array([1.0, 2.0])) and not reached(np.array([1.0, np.nan]))


def test_a_salt_changes_every_draw_and_nothing_else():
    plain = rng("a", 1).random(3)
    with salted("x"):
        other = rng("a", 1).random(3)
        with salted(""):
            assert np.array_equal(rng("a", 1).random(3), plain)
        assert np.array_equal(rng("a", 1).random(3), other)
    assert np.array_equal(rng("a", 1).random(3), plain) and not np.array_equal(plain, other)
    with salted("y"):
        assert not np.isin(rng("a", 1).random(3), [plain, other]).any()
