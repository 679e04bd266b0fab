"""eval.dynamics: claims judge, simulations are gradient descent, and every probe holds at its TINY settings.

A probe is tested here without a word more: its claims hold, and flip when the theory is off by 5 %.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import eval.dynamics
from dixit.common import DixitError
from dixit.config import build, read_tree
from eval.dynamics.__main__ import main
from eval.dynamics.find import find_probe, probe_names
from eval.dynamics.pages import INDEX, PAGES, ClaimRow, pages
from eval.dynamics.probe import Claim, Networks, simulate, table
from eval.dynamics.running import report, run_probe
from eval.figures import MAX_BYTES
from eval.tables import read_cells, read_table

ROOT = Path(__file__).resolve().parents[2]
LINK, PICTURE = re.compile(r"\]\((dynamics/\w+\.md)\)"), re.compile(r"!\[[^]]*\]\(([^)]+)\)")
CONFIGS = sorted((ROOT / "configs" / "dynamics").glob("*.yaml"))

PROBE = '''"""A quantity decays."""
from dataclasses import dataclass
from matplotlib.figure import Figure
from eval.dynamics.probe import Claim

@dataclass(frozen=True)
class Settings:
    rate: float = 1.0

TINY = Settings()

def run(settings, seeds, folder):
    figure = Figure()
    figure.subplots().plot([0, 1])
    return [Claim("rate", 1.0, settings.rate, 0.01, source="nobody | nowhere")], figure
'''


class Decay(Networks):
    """S networks of one weight each, with loss k w^2 / 2: w shrinks by 1 - lr k at every step."""

    k: Tensor

    def __init__(self, k: list[float]):
        super().__init__()
        self.w = nn.Parameter(torch.ones(len(k), 2, dtype=torch.float64))
        self.register_buffer("k", torch.tensor(k, dtype=torch.float64))

    def forward(self, step: int) -> Tensor:
        return self.k * (self.w ** 2).sum(1) / 2

    def measure(self) -> dict[str, Tensor]:
        return {"w": self.w}


@pytest.fixture(autouse=True)
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.mark.parametrize(("kind", "measured", "holds"), [
    ("close", 1.05, True), ("close", 0.95, True), ("close", 1.2, False), ("close", np.nan, False),
    ("at_least", 3.0, True), ("at_least", 0.95, True), ("at_least", 0.5, False), ("at_least", np.nan, False),
    ("at_most", 0.5, True), ("at_most", 1.05, True), ("at_most", 3.0, False), ("at_most", np.nan, False),
    ("report", 17.0, True)])
def test_a_claim_judges(kind, measured, holds):
    assert Claim("x", 1.0, measured, 0.1, kind).holds is holds


def test_the_worst_entry_of_a_curve_decides_and_is_shown():
    claim = Claim("x", np.array([1.0, 2.0]), np.array([[1.0, 2.0], [1.0, 2.5]]), 0.1)
    row = claim.row()
    assert not claim.holds and (row["theory"], row["measured"], row["deviation"]) == (2.0, 2.5, 0.5)
    assert "**no**" in table([row]) and "worst of 4" in table([row])
    assert Claim("x", 0.0, np.array([0.0, np.nan]), 1.0).row()["measured"] is None


def test_sharp_tells_a_theory_that_is_5_percent_off():
    assert Claim("x", 2.0, 2.01, 0.02).sharp
    assert not Claim("x", 2.0, 2.01, 0.2).sharp  # too tolerant
    assert not Claim("x", 2.0, 2.2, 0.02).sharp  # fails anyway


def test_a_simulation_is_gradient_descent_of_each_network_alone(tmp_path):
    rates = [0.5, 1.0, 2.0]
    for _ in range(2):  # the second run starts afresh
        record = simulate(Decay(rates), tmp_path / "decay", steps=10, lr=0.1, every=4)
        assert record["step"].tolist() == [0, 4, 8, 10] and record["w"].shape == (4, 3, 2)
        exact = (1 - 0.1 * np.array(rates)) ** record["step"][:, None]
        np.testing.assert_allclose(record["w"], np.stack([exact, exact], -1), rtol=1e-14)


def test_processes_share_the_networks(tmp_path):
    """Three networks on two processes, two simulations in a row: as on one."""
    script = tmp_path / "two.py"
    script.write_text(f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests" / "dynamics")!r}, {str(ROOT / 'tests')!r}]
from pathlib import Path
import numpy as np
from accelerate import PartialState
from test_dynamics import Decay
from eval.dynamics.probe import simulate
for number in range(2):
    record = simulate(Decay([0.5, 1.0, 2.0]), Path({str(tmp_path)!r}) / f"run{{number}}", 10, 0.1, 5)
    state = PartialState()
    np.save(Path({str(tmp_path)!r}) / f"{{number}}_{{state.process_index}}_of_{{state.num_processes}}.npy", record["w"])
""")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    one = simulate(Decay([0.5, 1.0, 2.0]), tmp_path / "one", 10, 0.1, 5)["w"]
    for number, rank in ((0, 0), (0, 1), (1, 0), (1, 1)):
        np.testing.assert_allclose(np.load(tmp_path / f"{number}_{rank}_of_2.npy"), one, rtol=1e-14)


@pytest.mark.parametrize("name", probe_names())
def test_every_probe_holds_and_is_sharp(tmp_path, name):
    probe = find_probe(name)
    claims, figure = probe.run(probe.TINY, 2, tmp_path)
    assert [c.name for c in claims if not c.holds or c.kind == "skip" or c.source.startswith("no bar")] == []
    assert len({c.name for c in claims}) == len(claims) and figure.axes
    tight = [c for c in claims if c.kind == "close" and c.tolerance < 0.025 * np.abs(c.theory).max()]
    assert tight and [c.name for c in tight if not c.sharp] == []
    for claim in tight:
        assert not claim.perturbed(1.05).holds and not claim.perturbed(0.95).holds, claim.name


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_of_a_probe_loads(path):
    probe = find_probe(path.stem.rpartition("_")[0])
    assert build(probe.Settings, read_tree(path)) != probe.Settings()


def test_a_new_probe_is_one_new_file(tmp_path, monkeypatch):
    (tmp_path / "decay.py").write_text(PROBE)
    monkeypatch.setattr(eval.dynamics, "__path__", [*eval.dynamics.__path__, str(tmp_path)])
    assert "decay" in probe_names()
    good = run_probe("decay", 2, tmp_path / "good")
    bad = run_probe("decay", 1, tmp_path / "bad", overrides=("rate=1.2",))
    assert good["claims"][0]["holds"] and good["claims"][0]["sharp"] and not bad["claims"][0]["holds"]
    assert json.loads((tmp_path / "good" / "results.json").read_text())["seeds"] == [0, 1]
    assert (tmp_path / "good" / "decay.png").is_file() and (tmp_path / "good" / "decay.svg").is_file()
    place = tmp_path / "place"
    report([tmp_path / "good"], place)
    page, index = (place / "docs/dynamics/decay.md").read_text(), (place / "eval/DYNAMICS.md").read_text()
    assert page.startswith("# decay\n") and "A quantity decays." in page and "| rate | 1 | 1 | 0 | 0.01 | yes |" in page
    assert "../../eval/results/dynamics/decay.png" in page and "nobody \\| nowhere" in page
    assert "## [decay](../docs/dynamics/decay.md)" in index and "| rate | yes | 1 | 1 |" in index
    assert (place / "eval/results/dynamics/decay.png").is_file()
    report([tmp_path / "bad"], place)  # takes the place of the first run
    assert [row.measured for row in read_table(place / "eval/results/dynamics.csv", ClaimRow)] == [1.2]
    assert [cell.seed for cell in read_cells(place / "eval/results")] == ["0"]
    assert "| rate | **no** | 1 | 1.2 |" in (place / "eval/DYNAMICS.md").read_text()
    for name, seeds, changes, says in (("decay", 1, ("rat=1",), "'rate'"), ("decai", 1, (), "'decay'"),
                                       ("decay", 0, (), "--seeds"), ("ocs", 1, ("hidden=0",), "hidden is 0; choose"),
                                       ("ocs", 1, ("lr=-1",), "lr is -1"), ("ocs", 1, ("every=-5",), "every is -5")):
        with pytest.raises(DixitError, match=says):
            run_probe(name, seeds, tmp_path / "bad", overrides=changes)
    with pytest.raises(DixitError, match="--salt"):
        run_probe("ocs", 1, tmp_path / "bad", on="speaker", salt="x")


def test_runs_with_salts_are_counted_on_one_page(tmp_path, monkeypatch):
    """Each is a row, and replaces an earlier one of the same salt; the probe's own page stays as it is."""
    (tmp_path / "decay.py").write_text(PROBE)
    monkeypatch.setattr(eval.dynamics, "__path__", [*eval.dynamics.__path__, str(tmp_path)])
    for salt in ("x", "y"):
        run_probe("decay", 2, tmp_path / salt, salt=salt)
    results = json.loads((tmp_path / "y/results.json").read_text())
    results["claims"].append(results["claims"][0] | {"claim": "rate, later", "holds": False})
    (tmp_path / "y/results.json").write_text(json.dumps(results))
    place = tmp_path / "place"
    report([tmp_path / "x", tmp_path / "y", tmp_path / "x"], place)
    page = (place / "docs/dynamics/salts.md").read_text()
    assert "| decay | 2 | 3 | 66.7% | rate, later (1) |" in page and "| all | 2 | 3 | 66.7% |  |" in page
    assert not (place / "docs/dynamics/decay.md").exists()
    run_probe("decay", 2, tmp_path / "other", salt="x", overrides=("rate=1.001",))
    with pytest.raises(DixitError, match="default"):
        report([tmp_path / "other"], place)


def test_pages_are_generated_from_the_tables():
    """If this fails: python -m eval.dynamics report."""
    generated = pages(ROOT)
    for path, text in generated.items():
        assert (ROOT / path).read_text(encoding="utf-8") == text, path
    names = {path.name for path in generated if path.parent == PAGES}
    assert {path.name for path in (ROOT / PAGES).glob("*.md")} == names
    assert {f"dynamics/{name}" for name in names} == set(LINK.findall((ROOT / "docs/dynamics.md").read_text()))
    assert len(generated[INDEX].encode()) <= 60_000


def test_every_page_shows_its_figures():
    shown = {(ROOT / PAGES / target).resolve() for text in pages(ROOT).values() for target in PICTURE.findall(text)}
    assert shown == set((ROOT / "eval/results/dynamics").glob("**/*.png"))
    assert max(path.stat().st_size for path in shown) <= MAX_BYTES


@pytest.mark.parametrize(("rate", "code"), [("1.0", 0), ("1.2", 1)])
def test_a_failing_claim_ends_the_command_with_1(tmp_path, monkeypatch, capsys, rate, code):
    (tmp_path / "decay.py").write_text(PROBE)
    monkeypatch.setattr(eval.dynamics, "__path__", [*eval.dynamics.__path__, str(tmp_path)])
    monkeypatch.setattr(sys, "argv", ["eval.dynamics", "decay", "--salt", "x", "--out", str(tmp_path / "out"), "--set",
                                      f"rate={rate}"])
    assert main() == code and ("**no**" in capsys.readouterr().out) is bool(code)
    assert json.loads((tmp_path / "out/decay/results.json").read_text())["salt"] == "x"


def test_what_was_too_short_is_skipped_and_the_command_ends_well(command, tmp_path):
    quick = ["depths=[2]", "rhos=[0.3]", "images=[]", "hidden=8", "steps=20"]  # too short for anything to be learned
    done = command("-m", "eval.dynamics", "ocs", "--seeds", 1, "--out", tmp_path, "--set", *quick)
    assert done.returncode == 0 and "| skipped | skipped: not learned by time 0.4 |" in done.stdout, done.stderr
    assert (tmp_path / "ocs" / "results.json").is_file() and (tmp_path / "ocs" / "ocs.png").is_file()


@pytest.mark.parametrize("words", [["ocs", "steps=1"], ["all", "--set", "steps=1"], ["oc"]])
def test_bad_words_are_told(monkeypatch, words):
    monkeypatch.setattr(sys, "argv", ["eval.dynamics", *words])
    with pytest.raises(DixitError):
        main()
