"""The drift panel: metrics against numbers worked out by hand and pycocoevalcap, and the command on tiny runs."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider import Cider

from dixit.common import DixitError, rng, words
from dixit.data import scenes
from dixit.data.images import load
from dixit.training.runs import load_run
from eval import commands, drift, rewrites
from eval.evaluate import generate_captions
from eval.tables import Cell, find, look_up, read_rows

# Two objects; the second is the only small, the only dotted one.
RECORD = {"background": {"tone": "dark", "texture": "striped"}, "objects": [
    {"shape": "circle", "colour": "red", "size": "big", "texture": "plain", "cell": [0, 0], "luma": 0.5},
    {"shape": "star", "colour": "blue", "size": "small", "texture": "dotted", "cell": [1, 1], "luma": 0.5}]}


def scene_captions(count: int) -> tuple[list[dict], list[list[str]]]:
    """Records of test scenes and eight captions of each."""
    records = [scenes.sample_record(0, "test", i) for i in range(count)]
    return records, [scenes.captions(record, 8, rng("drift", i)) for i, record in enumerate(records)]


def test_doubled_words_and_full_stops_by_hand():
    texts = ["A green green thing.", "Green GREEN thing", "a green thing, a green thing.", "redder red", ""]
    assert drift.no_doubled_word(texts).tolist() == [0, 0, 1, 1, 1]
    assert drift.full_stop(texts).tolist() == [1, 0, 1, 0, 0]


def test_bleu_by_hand():
    # n-grams right: 4 of 5, 3 of 4, 2 of 3, 1 of 2, whose product is 1/5.
    assert drift.bleu_4(["A b c d e."], [["a b c d f"]]) == pytest.approx(0.2 ** 0.25)
    # All are right, but 4 words stand against 5: of the lengths 5 and 8, 5 is closer.
    assert drift.bleu_4(["a b c d"], [["a b c d e", "a b c d e f g h"]]) == pytest.approx(math.exp(1 - 5 / 4))
    # A word counts no oftener than in one reference; and without a right 4-gram, there is nothing.
    assert drift.bleu_4(["a b c d", "a a a a"], [["a b c d"], ["a", "a b c d"]]) == pytest.approx(
        (5 / 8 * 3 / 6 * 2 / 4 * 1 / 2) ** 0.25)
    assert drift.bleu_4(["a b c"], [["a b c"]]) == drift.bleu_4([""], [["a b c d"]]) == 0.0


def test_cider_by_hand():
    # Scenes that share no word: all n-grams weigh the same, and the cosine of a caption with itself is 1 for each n.
    references = [["a b c d"], ["e f g h"]]
    assert drift.cider_d(["A b c d.", "e f g h"], references).tolist() == pytest.approx([10, 10])
    assert drift.cider_d(["e f g h", ""], references).tolist() == [0, 0]
    # 2 of 4 words, 1 of 3 pairs: with n words alike, cosines are 2/4, 1/3, 0, 0; as long as the reference.
    assert drift.cider_d(["a b x y", "e f g h"], references)[0] == pytest.approx(10 * (1 / 2 + 1 / 3) / 4)
    # Two words too many: cosines 4/sqrt(4*6), 3/sqrt(3*5), 2/sqrt(2*4), 1/sqrt(1*3).
    cosines = 4 / math.sqrt(24) + 3 / math.sqrt(15) + 2 / math.sqrt(8) + 1 / math.sqrt(3)
    assert drift.cider_d(["a b c d x y", "e f g h"], references)[0] == pytest.approx(
        10 * cosines / 4 * math.exp(-4 / 72))


@pytest.mark.parametrize("kind", ["own words", "another scene's", "messy"])
def test_bleu_and_cider_are_those_of_pycocoevalcap(kind):
    records, references = scene_captions(60)
    texts = [scenes.captions(record, 1, rng("other", i))[0] for i, record in enumerate(records)]
    if kind == "another scene's":
        texts = texts[1:] + texts[:1]
    if kind == "messy":
        r = rng("messy")
        texts = [" ".join(r.permutation(words(text) + words(text)[:3])) for text in texts]
        texts[3] = ""
    references[5] = references[5][:3]  # not all images have as many
    bleu, known, said = BleuScorer(n=4), {}, {}
    for i, (text, row) in enumerate(zip(texts, references, strict=True)):
        said[i], known[i] = [" ".join(words(text))], [" ".join(words(r)) for r in row]
        bleu += (said[i][0], known[i])
    wanted, each = Cider().compute_score(known, said)
    assert drift.bleu_4(texts, references) == pytest.approx(bleu.compute_score()[0][3], abs=1e-6)
    torch.testing.assert_close(drift.cider_d(texts, references).double(), torch.from_numpy(each), atol=1e-4, rtol=1e-5)
    assert drift.bleu_4(texts, references) > 0 and wanted > 0


def test_claims_by_hand():
    assert drift.claims("A big red circle at the top left on a dark background.") == [
        {"of": "object", "size": ["big"], "colour": ["red"], "shape": ["circle"], "position": ["top", "left"]},
        {"of": "background", "tone": ["dark"]}]
    assert drift.claims("a green green thing and a blue shape") == [
        {"of": "object", "colour": ["green"]}, {"of": "object", "colour": ["blue"]}]
    assert drift.claims("Two stars, a red blue") == [
        {"of": "object", "count": ["two"], "shape": ["star"]}, {"of": "object", "colour": ["red", "blue"]}]
    assert drift.claims("three things on the striped background") == [
        {"of": "object", "count": ["three"]}, {"of": "background", "texture": ["striped"]}]
    assert drift.claims("little violet discs in the upper center") == [
        {"of": "object", "size": ["small"], "colour": ["purple"], "shape": ["circle"], "position": ["top", "centre"]}]
    assert drift.claims("A thing, and the at background dog!") == drift.claims("") == []


def test_faithfulness_by_hand():
    shares = {
        "A big red circle at the top left.": (1, 1),
        "A small red circle.": (0, 1),  # each word is true of something, all of them of nothing
        "A blue star at the centre and a green thing.": (1 / 2, 3 / 4),
        "a star at the left": (0, 1),
        "A red circle at the centre": (0, 1),  # alone, the centre is the middle of the image
        "a red blue thing": (0, 1),
        "Two shapes on a dark striped background.": (1, 1),
        "Two circles on a light background.": (0, 2 / 3),
        "One star, three shapes": (1 / 2, 1 / 3),  # one star is true, but the word "one" is read of all objects
        "a green ring on a red background": (0, 1 / 3),
    }
    found = drift.faithfulness(list(shares), [RECORD] * len(shares))
    assert found["phrases"].tolist() == pytest.approx([phrases for phrases, _ in shares.values()])
    assert found["words"].tolist() == pytest.approx([said for _, said in shares.values()])
    empty = drift.faithfulness(["A thing.", ""], [RECORD, RECORD])
    assert empty["phrases"].isnan().all() and empty["words"].isnan().all()


def test_captions_of_the_grammar_are_faithful_however_they_are_rewritten():
    records, captions = scene_captions(60)
    texts = [row[0] for row in captions] + [scenes.full_caption(r) for r in records]
    for change in [str, *rewrites.KEEPING.values()]:
        for values in drift.faithfulness([change(t) for t in texts], records + records).values():
            assert (values[~values.isnan()] == 1).all() and not values[60:].isnan().any()
    swapped = drift.faithfulness(texts, (records + records)[1:] + records[:1])
    assert 0.05 < swapped["phrases"].nanmean() < swapped["words"].nanmean() < 0.7


def test_rewrites_by_hand():
    text = "A big big red circle at the top left, an orange thing and a purple star at the centre."
    assert rewrites.undouble(text) == text.replace("big big", "big")
    assert rewrites.reorder(text) == (
        "A purple star at the centre, an orange thing and a big big red circle at the top left.")
    assert rewrites.reword(text) == (
        "A large large red disc in the upper left, an orange shape and a violet star in the centre.")
    assert rewrites.REWRITES["rewritten"](text) == (
        "A violet star in the centre, an orange shape and a large red disc in the upper left.")
    assert rewrites.reword(rewrites.reword(text)) == text
    # No parts that could change places.
    for other in ("A red circle.", "a red and blue circle", "Two shapes on a dark background.", "A red star and a", ""):
        assert rewrites.reorder(other) == other
    assert rewrites.reword("Things, an object at the top") == "Shapes, an item at the top"


def test_rewrites_that_lose_something_by_hand():
    text = "A big red circle at the top left, two stars."
    assert rewrites.back_translate(text) == "Big red circle top left two."
    assert rewrites.halve(text) == "A big red circle at." and rewrites.halve("Dog.") == "Dog."
    shuffled = rewrites.shuffle(text)
    assert shuffled != text and sorted(words(shuffled)) == sorted(words(text)) and shuffled == rewrites.shuffle(text)
    assert all(change("") == "" for change in rewrites.REWRITES.values())


def test_the_share_kept_by_hand():
    found = drift.share_kept({"mean": 0.4, "se": 0.1, "n": 9}, {"mean": 0.2, "se": 0.1, "n": 9})
    assert found == {"mean": pytest.approx(0.5), "se": pytest.approx(math.hypot(0.1, 0.05) / 0.4), "n": 9}
    assert drift.share_kept({"mean": 0.2, "se": 0.1, "n": 9}, {"mean": 0.2, "se": 0.1, "n": 9}) is None


def test_word_shift_by_hand():
    # Prior: red 2, circle 1, thing 1. "thing" goes from 0 + 1 of 2 + 4 to 1 + 1 of 2 + 4: odds 1/5 and 2/4.
    z = math.log((2 / 4) / (1 / 5)) / math.sqrt(1 / 2 + 1 / 1)
    assert drift.word_shift(["Red circle."], ["a red thing"[2:]]) == [
        ("thing", pytest.approx(z), 0, 1), ("red", pytest.approx(0), 1, 1), ("circle", pytest.approx(-z), 1, 0)]
    assert drift.word_shift(["red"], ["red red"]) == [("red", 0.0, 1, 2)] and drift.word_shift([""], []) == []
    more = drift.word_shift(["Red circle."] * 100, ["red thing"] * 100)
    assert [row[0] for row in more] == ["thing", "red", "circle"] and more[0][1] > 5 * z


@pytest.fixture(scope="module")
def drifted(game_run: Path, command, tmp_path_factory) -> Path:
    """A folder with two copies of the tiny game, a picture of both, and what the command printed."""
    folder = tmp_path_factory.mktemp("drift")
    for name in ("one", "two"):
        shutil.copytree(game_run, folder / name)
    done = command("-m", "eval.drift", folder / "one", folder / "two", "eval.images=20", "--frontier",
                   folder / "plots" / "frontier.png")
    assert done.returncode == 0, done.stderr
    (folder / "printed").write_text(done.stdout)
    return folder


def test_the_command_writes_every_figure(drifted):
    found = json.loads((drifted / "one" / "drift.json").read_text())
    assert "eval.drift" in found["command"] or "drift.py" in found["command"]
    assert len(found["config_hash"]) == 12 and found["commit"] and found["seeds"] == {"run": 0, "eval": 1234}
    speakers = found["figures"]["speakers"]
    assert list(speakers) == ["base", "trained", "ground truth", "oracle"]
    for row in speakers.values():
        for rewrite in rewrites.REWRITES:
            for key in ("training/gap", "heldout/gap", "heldout/accuracy/grey", "changed"):
                assert row[f"{rewrite}/{key}"]["n"] == 20
        said = row.keys() & {f"paraphrased/{key}" for key in ("training/gap", "heldout/gap", "changed")}
        assert len(said) == (3 if row in (speakers["base"], speakers["trained"]) else 0)
        for key in ("training/gap", "perplexity", "no_doubled_word", "full_stop", "cider_d", "claims_nothing"):
            assert math.isfinite(row[key]["mean"]) and row[key]["n"] == 20
        assert 0 <= row["bleu_4"] <= 1 and 0 <= row["distinct_2"] <= 1
        if "faithful/phrases" in row:
            assert 0 <= row["faithful/phrases"]["mean"] <= 1
            assert row["faithful/phrases"]["n"] == pytest.approx(20 * (1 - row["claims_nothing"]["mean"]))
    truth, oracle = speakers["ground truth"], speakers["oracle"]
    assert truth["faithful/phrases"]["mean"] == oracle["faithful/words"]["mean"] == truth["full_stop"]["mean"] == 1
    assert truth["undoubled/changed"]["mean"] == 0 < truth["reordered/changed"]["mean"] <= 1
    assert truth["undoubled/training/gap"] == truth["training/gap"]
    assert speakers["trained"]["perplexity_ratio"] == pytest.approx(
        speakers["trained"]["perplexity"]["mean"] / speakers["base"]["perplexity"]["mean"])
    for word, z, before, after in found["figures"]["word_shift"]["gained"]:
        assert isinstance(word, str) and z > 0 and before >= 0 and after > 0
    captions = json.loads((drifted / "one" / "drift_captions.json").read_text())
    assert captions["oracle, reworded"]["texts"] == [rewrites.reword(t) for t in captions["oracle"]["texts"]]


def test_the_command_prints_tables_and_plots_a_point_per_run(drifted):
    printed = (drifted / "printed").read_text()
    assert printed.count("| ground truth |") == 2 and printed.count("| words | z | base | trained |") == 2
    one, two = (json.loads((drifted / name / "drift.json").read_text())["figures"] for name in ("one", "two"))
    assert one == two
    for name in ("one", "two"):
        assert f"written to {drifted / name / 'drift.json'}" in printed
    with Image.open(drifted / "plots" / "frontier.png") as picture:
        assert picture.format == "PNG" and picture.width > 500


def test_a_frontier_is_kept_as_rows(drifted, tmp_path):
    points = [(name, json.loads((drifted / name / "drift.json").read_text())["figures"]["speakers"])
              for name in ("one", "two")]
    cell = Cell("frontier", "kl_cost", "0", "python -m eval.drift one two", "", "abc")
    drift.keep(cell, points, tmp_path)
    for field in ("mean", "se", "n"):
        found = look_up("frontier", "kl_cost", "0", "two", "kl_to_base", field, tmp_path)
        assert found == pytest.approx(points[1][1]["trained"]["kl_to_base"][field], rel=1e-5)
    assert look_up("frontier", "kl_cost", "0", "one", "perplexity_ratio", folder=tmp_path) > 0
    assert find(read_rows(tmp_path / "frontier.csv"), speaker="one, base speaker", figure="faithful/words")
    assert not find(read_rows(tmp_path / "frontier.csv"), speaker="one", figure="bleu_4")


def test_what_cannot_be_measured_is_refused(caption_run, game_run, home, tmp_path, monkeypatch):
    for arguments, message in [([caption_run], "has no listeners"), (["eval.images=3"], "no run named"),
                               ([game_run, "--keep", "x"], "add --frontier PATH"), ([tmp_path], "is not a run"),
                               ([game_run, "eval.image=3"], "did you mean 'eval.images'")]:
        monkeypatch.setattr("sys.argv", ["drift", *map(str, arguments)])
        with pytest.raises(DixitError, match=message):
            commands.drift()


def test_without_a_base_speaker_there_is_no_drift(home, train, tmp_path, monkeypatch):
    train(home.game_config, tmp_path / "run", "train.steps=1")
    run = load_run(tmp_path / "run")
    dataset = load(run.config.data, "test").select(range(8))
    figures, _ = drift.panel(run, dataset, generate_captions(run, dataset))
    assert "base" not in figures["speakers"] and "word_shift" not in figures
    assert not {"kl_to_base", "perplexity_ratio"} & figures["speakers"]["trained"].keys()
    monkeypatch.setattr("sys.argv", ["drift", str(tmp_path / "run"), "--frontier", str(tmp_path / "plot.png")])
    with pytest.raises(DixitError, match="no base speaker"):
        commands.drift()
