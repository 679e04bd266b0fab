"""The configuration: unknown keys name the nearest key, overrides reach everywhere, the hash is stable."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from dixit.common import DixitError
from dixit.config import RENAMED, Config, changed, config_hash, load_config, to_dict

FOLDER = Path(__file__).resolve().parents[1] / "configs"
CONFIGS = sorted([*FOLDER.glob("*.yaml"), *(FOLDER / "pairs").glob("*.yaml")])
TWO = {"listeners": [{"name": "one"}, {"name": "two", "weight": -1}]}


def write(tmp_path: Path, tree: object) -> Path:
    path = tmp_path / "try.yaml"
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
    return path


def refused(tmp_path: Path, tree: object, *overrides: str) -> str:
    with pytest.raises(DixitError) as caught:
        load_config(write(tmp_path, tree), overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("tree", "wrong", "near"), [
    (TWO | {"lisseners": []}, "'lisseners'", "'listeners'"),
    (TWO | {"train": {"step": 3}}, "'train.step'", "'train.steps'"),
    ({"listeners": [{"name": "one"}, {"name": "two", "wieght": 1}]}, "'listeners[1].wieght'", "'listeners[1].weight'"),
    (TWO | {"zzz": 1}, "'zzz'", "did you mean"),
])
def test_an_unknown_key_names_the_nearest(tmp_path, tree, wrong, near):
    text = refused(tmp_path, tree)
    assert wrong in text and near in text


@pytest.mark.parametrize(("old", "new"), sorted(RENAMED.items()))
def test_a_renamed_key_is_refused_with_its_new_name(tmp_path, old, new):
    assert f"'{old}' is called '{new}' now" in refused(tmp_path, TWO, f"{old}=1")
    section, key = new.split(".")
    assert key in to_dict(Config())[section]


def test_an_unknown_override_names_the_nearest(tmp_path):
    assert "'train.steps'" in refused(tmp_path, TWO, "train.stepz=3")
    assert "'listeners[1].perception'" in refused(tmp_path, TWO, "listeners.1.perceptoin=grey")


def test_overrides_reach_into_trees_and_lists(tmp_path):
    config = load_config(write(tmp_path, TWO), [
        "train.steps=7", "train.lr=1e-4", "listeners.1.perception=blur", "listeners.0.weight=2",
        "oracle=[colour, size]", "game.reward=dixit", "out=elsewhere"])
    assert (config.train.steps, config.train.lr) == (7, 1e-4)
    assert [listener.perception for listener in config.listeners] == ["colour", "blur"]
    assert [listener.weight for listener in config.listeners] == [2.0, -1.0]
    assert config.oracle == ("colour", "size") and config.folder == Path("elsewhere")


@pytest.mark.parametrize("override", ["train.steps", "listeners.2.name=x", "listeners.one.name=x", "seed.deeper=1",
                                      "train.lr=[1"])
def test_an_override_that_leads_nowhere_is_refused(tmp_path, override):
    assert override.split("=")[0] in refused(tmp_path, TWO | {"seed": 1}, override)


def test_yaml_reads_small_numbers(tmp_path):
    config = load_config(write(tmp_path, "listeners: [{name: a, weight: -1e-1}]\ntrain: {lr: 1e-4, betas: [0, 9e-1]}"))
    assert config.train.lr == 1e-4 and config.listeners[0].weight == -0.1 and config.train.betas == (0.0, 0.9)
    assert isinstance(config.train.betas[0], float)


@pytest.mark.parametrize(("tree", "where"), [
    ({"train": {"steps": 1.5}}, "train.steps"), ({"train": {"steps": True}}, "train.steps"),
    ({"train": {"steps": "many"}}, "train.steps"), ({"train": {"lr": "fast"}}, "train.lr"),
    ({"train": 3}, "train"), ({"name": 3}, "name"), ({"listeners": "all"}, "listeners"),
    ({"listeners": [{"weight": 1}]}, "name"), ({"train": {"betas": [0.9]}}, "train.betas"),
    ({"oracle": [1]}, "oracle[0]"), ("- a list", "mapping"), ("a: [b", "not valid YAML"),
])
def test_wrong_types_are_named(tmp_path, tree, where):
    assert where in refused(tmp_path, tree)


@pytest.mark.parametrize(("override", "words"), [
    ("task=gane", "'game'"), ("game.reward=sub_log", "'sub_logp'"), ("game.distractors=randon", "'random'"),
    ("policy.algorithm=rlo", "'rloo'"), ("game.candidates=1", "candidates"), ("policy.samples=1", "samples"),
    ("train.accumulate=3", "multiple"), ("listeners=[]", "at least one"), ("train.mixed_precision=fp8", "bf16"),
    ("speaker.dtype=float16", "bfloat16"),
])
def test_values_that_cannot_work_are_refused(tmp_path, override, words):
    assert words in refused(tmp_path, TWO, override)


def test_a_missing_config_is_one_line(tmp_path):
    with pytest.raises(DixitError, match="cannot read the config"):
        load_config(tmp_path / "absent.yaml")


def test_the_hash_is_stable_and_blind_to_names_only(tmp_path):
    path = write(tmp_path, TWO)
    first = load_config(path)
    assert config_hash(first) == config_hash(load_config(path, ["out=there", "name=other"]))
    assert config_hash(first) != config_hash(load_config(path, ["seed=1"]))
    assert config_hash(first) != config_hash(load_config(path, ["listeners.1.weight=1"]))
    reordered = tmp_path / "reordered.yaml"
    reordered.write_text("seed: 0\nlisteners:\n- {name: one}\n- {weight: -1.0, name: two}\n")
    assert config_hash(load_config(reordered)) == config_hash(first)
    assert len(config_hash(first)) == 12 and int(config_hash(first), 16) >= 0


def test_the_resolved_tree_loads_as_itself(tmp_path):
    first = load_config(write(tmp_path, TWO), ["train.betas=[0.8, 0.9]", "listeners.0.vocabulary=[red]"])
    again = tmp_path / "resolved.yaml"
    again.write_text(yaml.safe_dump(to_dict(first)))
    assert load_config(again) == first


def test_configs_cannot_be_changed(tmp_path):
    config = load_config(write(tmp_path, TWO))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train.steps = 3


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_in_the_project_loads(path):
    config = load_config(path)
    assert isinstance(config, Config) and config.train.steps > 0
    assert config.train.batch % config.train.accumulate == 0


def test_changed_settings_are_named_with_both_values(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("task: caption\nname: c\ndata: {name: scenes}\n")
    before = load_config(path)
    after = load_config(path, ["seed=3", "train.steps=7"])
    assert changed(before, after) == [("seed", 0, 3), ("train.steps", before.train.steps, 7)]
    assert changed(before, before) == []
