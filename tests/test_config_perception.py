"""What a listener sees, as a config writes it: a name as before, or a chain of steps with strengths."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dixit.common import DixitError
from dixit.config import Config, changed, config_hash, load_config, settings_hash, to_dict
from dixit.config_perception import STEPS, PerceptionStep, perception_label

CHAIN = """\
listeners:
- {name: one}
- {name: two, perception: [grey, {blur: 3}, {jpeg: 5}, {crop: [0, 0, 1, 0.5]}, {occlude: [.25, 0, 1, 1]},
   {rotate_hue: 120}, {colour_blind: protan}, {cataract: 0.6}, {noise: 0.2}, {downsample: 32}, {contrast: 0.3}]}
clip: {perceptions: [colour, [{blur: 2}], [{blur: 4}]]}
"""


def load(folder: Path, text: str, *overrides: str) -> Config:
    path = folder / "try.yaml"
    path.write_text(text)
    return load_config(path, overrides)


def perception_of(folder: Path, written: str) -> Config:
    return load(folder, "listeners: [{name: one}, {name: two}]", f"listeners.1.perception={written}")


def test_a_chain_has_every_step_in_its_order(tmp_path):
    config = load(tmp_path, CHAIN)
    seen = config.listeners[1].perception
    assert seen[0] == "grey" and seen[1] == PerceptionStep(blur=3.0) and seen[3].crop == (0.0, 0.0, 1.0, 0.5)
    assert [key for step in seen[1:] for key in step.given] == list(STEPS)
    assert perception_label(seen) == (
        "grey + blur 3 + jpeg 5 + crop 0 0 1 0.5 + occlude 0.25 0 1 1 + rotate_hue 120 + colour_blind protan + "
        "cataract 0.6 + noise 0.2 + downsample 32 + contrast 0.3")
    assert config.listeners[0].perception == "colour" == perception_label("colour")
    assert config.clip.perceptions == ("colour", (PerceptionStep(blur=2.0),), (PerceptionStep(blur=4.0),))


def test_a_chain_is_saved_as_it_is_written_and_read_again(tmp_path):
    config = load(tmp_path, CHAIN)
    tree = to_dict(config)
    assert tree["listeners"][1]["perception"][:3] == ["grey", {"blur": 3.0}, {"jpeg": 5}]
    assert load(tmp_path, yaml.safe_dump(tree)) == config


def test_hashes_tell_strengths_apart(tmp_path):
    three, four, name = (perception_of(tmp_path, text) for text in ("[{blur: 3}]", "[{blur: 4}]", "blur"))
    for digest in config_hash, settings_hash:
        assert len({digest(three), digest(four), digest(name)}) == 3
        assert digest(three) == digest(perception_of(tmp_path, "[{blur: 3.0}]"))
    assert [key for key, *_ in changed(three, four)] == ["listeners"]


def test_an_override_changes_one_strength(tmp_path):
    config = load(tmp_path, CHAIN, "listeners.1.perception.2.jpeg=50")
    assert config.listeners[1].perception[2] == PerceptionStep(jpeg=50)


@pytest.mark.parametrize(("written", "words"), [
    ("[{blurr: 3}]", ["unknown key 'listeners[1].perception[0].blurr'", "'listeners[1].perception[0].blur'"]),
    ("[{blur: 3}, {jpeg: 0}]", ["listeners[1].perception[1].jpeg is 0", "[1, 100]"]),
    ("[{blur: strong}]", ["listeners[1].perception[0].blur must be float", "strong"]),
    ("[{jpeg: 5.5}]", ["listeners[1].perception[0].jpeg must be int", "5.5"]),
    ("[{blur: [1, 2]}]", ["listeners[1].perception[0].blur must be float"]),
    ("[{crop: [0, 0, 1]}]", ["listeners[1].perception[0].crop must have 4 values, not 3"]),
    ("[{crop: 0.5}]", ["listeners[1].perception[0].crop must be a list"]),
    ("[{crop: [0.5, 0, 0.5, 1]}]", ["listeners[1].perception[0].crop", "no inside", "[0, 0, 1, 0.5]"]),
    ("[{occlude: [0, 1, 1, 0]}]", ["listeners[1].perception[0].occlude", "no inside"]),
    ("[{occlude: [0, 0, 1, 2]}]", ["listeners[1].perception[0].occlude[3] is 2.0", "[0, 1]"]),
    ("[{colour_blind: red}]", ["listeners[1].perception[0].colour_blind is 'red'", "protan, deutan, tritan"]),
    ("[{blur: 3, jpeg: 5}]", ["listeners[1].perception[0] has blur and jpeg", "[{blur: 3}, {jpeg: 5}]"]),
    ("[{blur: }]", ["listeners[1].perception[0] gives no step a strength", "[{blur: 3}, {jpeg: 5}]"]),
    ("[{}]", ["listeners[1].perception[0] gives no step a strength"]),
    ("[]", ["listeners[1].perception is empty", "colour", "[{blur: 3}, {jpeg: 5}]"]),
    ("{blur: 3}", ["listeners[1].perception must be a list"]),
    ("[[{blur: 3}]]", ["listeners[1].perception[0] must be a mapping"]),
    ("jpeg", ["listeners[1].perception is 'jpeg'", "needs a strength; write [{jpeg: STRENGTH}]"]),
    ("[grey, noise]", ["listeners[1].perception[1] is 'noise'", "needs a strength; write {noise: STRENGTH}"]),
    ("[gray]", ["listeners[1].perception[0] is 'gray'", "'grey'"]),
    ("gray", ["listeners[1].perception is 'gray'", "'grey'"]), ("3", ["listeners[1].perception is '3'"]),
    ("", ["listeners[1].perception is ''", "grey"]),
])
def test_a_bad_recipe_is_one_line_with_key_and_remedy(tmp_path, written, words):
    with pytest.raises(DixitError) as caught:
        perception_of(tmp_path, written)
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(("override", "words"), [
    ("heldout=[{name: x, perception: [{cataract: 2}]}]", "heldout[0].perception[0].cataract is 2.0"),
    ("heldout=[{name: x, perception: []}]", "heldout[0].perception is empty"),
    ("clip.perceptions=[colour, [{noise: 2}]]", "clip.perceptions[1][0].noise is 2.0"),
    ("clip.perceptions=[[{blur: 2}], [{blur: 2}]]", "'blur 2' stands 2 times in clip.perceptions"),
    ("clip.perceptions=[colour, []]", "clip.perceptions[1] is empty"),
])
def test_held_out_listeners_and_a_clips_perceptions_have_the_same_rules(tmp_path, override, words):
    with pytest.raises(DixitError) as caught:
        load(tmp_path, "listeners: [{name: one}]", override)
    assert words in str(caught.value)


def test_a_step_without_a_strength_in_an_override_empties_it(tmp_path):
    with pytest.raises(DixitError, match=r"listeners\[1\].perception\[1\] gives no step a strength"):
        load(tmp_path, CHAIN, "listeners.1.perception.1.blur=")


def test_the_docs_have_a_row_for_every_step():
    page = (Path(__file__).resolve().parents[1] / "docs" / "own_data.md").read_text()
    assert all(f"| `{{{step}: " in page for step in STEPS)
