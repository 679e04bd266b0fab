"""The configuration: unknown keys name the nearest key, overrides reach everywhere, the hash is stable."""

from __future__ import annotations

import dataclasses
import time
import typing
from pathlib import Path

import pytest
import yaml

from dixit import config_perception
from dixit.common import DixitError
from dixit.config import (
    RENAMED,
    Config,
    DataConfig,
    ListenerConfig,
    changed,
    config_hash,
    load_config,
    refuse_doubled,
    to_dict,
)
from dixit.config_checks import (
    CHOICES,
    DATA,
    DOMAINS,
    FREE,
    NOT_EMPTY,
    PERCEPTIONS,
    RANGES,
    REGIONS,
    is_inside,
    rule_key,
)
from dixit.data import images, scenes
from dixit.models import perception, perception_steps

FOLDER = Path(__file__).resolve().parents[1] / "configs"
CONFIGS = sorted(path for folder in ("", "pairs", "pictures", "recipes") for path in (FOLDER / folder).glob("*.yaml"))
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
    (TWO | {"zzz": 1}, "'zzz'", "choose one of task, name"),
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
    ({"train": 3}, "train"), ({"listeners": "all"}, "listeners"),
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


def keys_of(kind: type = Config, where: str = "") -> dict[str, type]:
    """Dotted key -> type of every number and text of the tree; places in lists are left out."""
    found: dict[str, type] = {}
    for key, hint in typing.get_type_hints(kind).items():
        path = f"{where}.{key}" if where else key
        for part in parts_of(hint):
            found |= keys_of(part, path) if dataclasses.is_dataclass(part) else {path: part}
    return found


def parts_of(hint: typing.Any) -> list[type]:
    """What lists and unions are made of."""
    inside = [part for part in typing.get_args(hint) if part not in (Ellipsis, type(None))]
    return [kind for part in inside for kind in parts_of(part)] or [hint]


def test_every_key_has_a_rule():
    for key, kind in keys_of().items():
        known = {int: RANGES, float: RANGES, str: {*CHOICES, *FREE, *NOT_EMPTY}, bool: {rule_key(key)}}[kind]
        assert rule_key(key) in known, f"{key} has no range or choices in config_checks.py"


def test_lists_of_names_are_those_of_the_modules_that_know_them():
    assert set(DATA) == set(images.NAMES) and set(PERCEPTIONS) == set(perception.PERCEPTIONS)
    assert set(DOMAINS) == {*scenes.WORD_CLASSES, "thing"} and set(REGIONS) == set(scenes.REGIONS)
    assert set(CHOICES["eval.split"]) == set(scenes.SPLITS)
    assert set(config_perception.STEPS) == {*perception_steps.STEPS, "noise"}
    assert set(CHOICES["listeners.perception.colour_blind"]) == set(perception_steps.MACHADO)


def in_a_list(key: str) -> str:
    """The override that sets a key: listeners.weight is listeners.0.weight; a list of values has this one value."""
    return key.replace("listeners.", "listeners.0.").replace("perception.", "perception.0.")


def before(key: str) -> list[str]:
    """The override that makes room for a step of a perception."""
    return ["listeners.0.perception=[{}]"] if "perception." in key else []


@pytest.mark.parametrize(("key", "interval"), sorted(RANGES.items()))
def test_numbers_outside_their_range_are_refused_with_key_and_range(tmp_path, key, interval):
    low, high = (float(part) for part in interval[1:-1].split(","))
    whole = keys_of()[key] is int
    outside = [low - 1, high + 1] if whole else [low if interval[0] == "(" else low - 1e-3,
                                                high if interval[-1] == ")" else high + 1e-3]
    for value in outside:
        if abs(value) == float("inf"):
            continue
        text = f"{value:.0f}" if whole else repr(value)
        box = f"[{min(value, 0.0)}, 0, 1, {max(value, 1.0)}]"
        text = {"picks": f"[{text}]", "train.betas": f"[0.5, {text}]", "listeners.perception.crop": box,
                "listeners.perception.occlude": box}.get(key, text)
        message = refused(tmp_path, TWO, *before(key), f"{in_a_list(key)}={text}")
        assert key.split(".")[-1] in message and interval in message


@pytest.mark.parametrize("word", ["nan", ".nan", "inf", ".inf", "-.inf", "1e999"])
@pytest.mark.parametrize("key", ["train.lr", "listeners.0.weight", "policy.temperature"])
def test_numbers_that_are_none_are_refused(tmp_path, key, word):
    assert key.split(".")[-1] in refused(tmp_path, TWO, f"{key}={word}")


def test_intervals():
    assert is_inside(0, "[0, 1)") and is_inside(1, "(0, 1]") and is_inside(5.0, "[0, inf)")
    assert not is_inside(1, "[0, 1)") and not is_inside(0, "(0, 1]")
    assert not is_inside(float("inf"), "[0, inf)") and not is_inside(float("nan"), "[0, 9]")


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in CHOICES.items() for value in values])
def test_every_documented_choice_is_taken_as_an_override_and_in_a_file(tmp_path, key, value):
    """Words that YAML reads as something else, such as no, are the texts they are."""
    free = {"task": ["listeners.0.weight=1"]}  # a choice may need other settings
    needs = {"policy.baseline": ["policy.algorithm=reinforce"], "data.attributes": ["task=caption"],
             "speaker.kind": ["speaker.llm=a/b"], "continual.remedy": [
        "audiences=[[one, two]]", "speaker.audience_width=1", "speaker.gated_units=4"]}
    text = f"[{value}]" if key in ("oracle", "train.trackers", "clip.perceptions", "data.attributes") else \
        value
    config = load_config(write(tmp_path, TWO), [
        *before(key), f"{in_a_list(key)}={text}", *needs.get(key, []), *free.get(key, []),
        *["listeners.0.model=runs/other"] * (key == "listeners.kind" and value in ("captioner", "vlm"))])
    found = config
    for part in in_a_list(key).split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    assert found in (value, (value,))


@pytest.mark.parametrize(("line", "value"), [
    ("name: no", "no"), ("name: 2026-11-26", "2026-11-26"), ("name: 010", "010"), ("name: 1e3", "1e3"),
    ("name: 3", "3"), ("name: on", "on"), ("name: '~'", "~"), ("name: \"no\"", "no"),
])
def test_an_unquoted_text_is_taken_as_it_is_written(tmp_path, line, value):
    assert load_config(write(tmp_path, f"{line}\nlisteners: [{{name: one}}]")).name == value


def test_numbers_are_decimal(tmp_path):
    config = load_config(write(tmp_path, TWO), ["seed=010", "train.steps=1_000", "train.lr=+1E-4", "train.warmup=08"])
    assert (config.seed, config.train.steps, config.train.lr, config.train.warmup) == (10, 1000, 1e-4, 8)
    assert "train.steps" in refused(tmp_path, TWO, "train.steps=1e3")


def test_nothing_empties_a_text_a_list_or_a_section(tmp_path):
    tree = TWO | {"oracle": ["colour"], "out": "there", "train": {"steps": 3}}
    config = load_config(write(tmp_path, tree), ["oracle=", "out=", "train="])
    assert config.oracle == () and config.out == "" and config.train.steps == Config().train.steps
    assert load_config(write(tmp_path, "listeners: [{name: a}]\ntrain:\n"), ["train.steps=4"]).train.steps == 4


@pytest.mark.parametrize(("text", "key", "first", "second"), [
    ("task: game\nlisteners: [{name: a}]\ntask: caption\n", "task", 1, 3),
    ("listeners: [{name: a}]\ntrain:\n  steps: 3\n  lr: 0.1\n  steps: 4\n", "train.steps", 3, 5),
    ("listeners:\n- name: a\n  weight: 1\n  weight: 2\n", "listeners[0].weight", 3, 4),
    ("x: &x\n  a: 1\ntrain:\n  <<: *x\n  <<: *x\n", "train.<<", 4, 5),
])
def test_a_key_that_stands_twice_is_refused_with_both_lines(tmp_path, text, key, first, second):
    message = refused(tmp_path, text)
    assert f"'{key}' stands twice" in message and f"lines {first} and {second}" in message


def test_a_key_that_stands_twice_in_one_line(tmp_path):
    assert "'steps' stands twice in the value of 'train'" in refused(tmp_path, TWO, "train={steps: 1, steps: 2}")
    with pytest.raises(DixitError, match="'seed' is given 2 times on the command line"):
        refuse_doubled(["seed=1", "train.steps=3", "seed=2"])


def test_merge_keys_work_and_own_keys_win(tmp_path):
    path = write(tmp_path, "listeners:\n- &one {name: one, perception: grey, weight: 2}\n"
                           "- {<<: *one, name: two, weight: -1}\n")
    assert [(x.name, x.perception, x.weight) for x in load_config(path).listeners] == [
        ("one", "grey", 2.0), ("two", "grey", -1.0)]


BOMBS = {
    "merges": "a0: &a0 {x: 1}\n" + "".join(
        f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)),
    "aliases": "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
    "an alias of itself": "a: &a [*a]", "a mapping in itself": "a: &a {b: *a}", "depth": "[" * 90_000,
    "steps": "- " * 40_000, "values": "a: [" + "1, " * 30_000 + "]", "size": "name: " + "x" * 200_000,
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS.keys())
def test_yaml_that_blows_up_is_refused_at_once(tmp_path, text):
    path = write(tmp_path, text)
    began = time.process_time()
    with pytest.raises(DixitError):
        load_config(path)
    assert time.process_time() - began < 2  # of this process: what others do does not count


@pytest.mark.parametrize(("text", "place"), [
    ("seed: 1\n\ttask: game", "line 2, column 1"), ("seed: [1", "line 1, column 9"), ("seed: 'x", "line 1, column 9"),
    ("seed: 1\nname: a: b", "line 2, column 8"), ("a: 1\nb: \x07", "line 2, column 4"),
    ("seed: *nothing", "line 1, column 7"), ("seed: !!python/name:os.system", "line 1, column 7"),
    ("seed: 1\n---\nseed: 2", "line 2, column 1"), ("? [a]\n: 1", "line 1"), ("a: !!python/object:os.x {}", "line 1"),
])
def test_a_yaml_error_names_line_and_column(tmp_path, text, place):
    message = refused(tmp_path, text)
    assert "not valid YAML" in message and place in message


def test_texts_of_editors_are_read(tmp_path):
    text = "name: né\nlisteners: [{name: a}]\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path = tmp_path / f"{encoding}.yaml"
        path.write_bytes(text.replace("\n", "\r\n").encode(encoding))
        assert load_config(path).name == "né"
    (tmp_path / "latin.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(DixitError, match="line 1 is not UTF-8"):
        load_config(tmp_path / "latin.yaml")


@pytest.mark.parametrize(("overrides", "words"), [
    (["seed=-1"], "[0, 4294967295]"), (["speaker.width=100", "speaker.heads=8"], "multiple of speaker.heads"),
    (["heldout=[{name: x, perception: purple}]"], "heldout[0].perception"),
    (["heldout=[{name: x, language: klingon}]"], "heldout[0].language"),
    (["heldout=[{name: x, domain: animal}]"], "heldout[0].domain"),
    (["heldout=[{name: x}, {name: x}]"], "stands 2 times"),
    (["heldout=[{name: ''}]"], "heldout[0].name is empty"), (["name="], "name is empty"),
    (["train.trackers=[nonsense]"], "tensorboard"), (["train.trackers=[wandb, wandb]"], "stands 2 times"),
    (["train.best=gain"], "gap_constant"), (["train.best=accuracy/three"], "accuracy/one"),
    (["data.name=scenes+stampz"], "'stamps'"), (["data.train=0"], "at least 1 scene"), (["eval.split=dev"], "combos"),
    (["audiences=[[one, three]]"], "'three', which is no listener"), (["audiences=[[one, one]]"], "one listener twice"),
    (["clip.perceptions="], "clip.perceptions is empty"), (["picks="], "picks is empty"),
    (["oracle=[color]"], "colour"),
    (["game.normalise=listener", "game.reward=dixit"], "dixit is none"),
    (["game.normalise=listener", "policy.algorithm=reinforce", "policy.samples=1"], "policy.samples >= 2"),
    (["game.normalise=listener", "policy.algorithm=self_critical"], "choose rloo"),
    (["policy.baseline=audience"], "policy.algorithm reinforce"),
    (["policy.algorithm=dpo", "policy.samples=1"], "dpo needs policy.samples >= 2"),
    (["policy.algorithm=dpo", "speaker.lora_rank=2"], "dpo needs speaker.lora_rank 0"),
    (["data.attributes=[colour]"], "data.attributes is for the tasks words and caption on scenes, not game"),
    (["task=caption", "data.attributes=[color]"], "colour"),
    (["task=caption", "data.attributes=[colour]", "data.name=emoji"], "not caption on emoji"),
    (["heldout=[{name: x, kind: captioner}]"], "heldout[0].model is empty; a listener of kind captioner needs"),
    (["heldout=[{name: x, kind: vlm}]"], "heldout[0].model is empty; a listener of kind vlm needs a"),
    (["heldout=[{name: x, model: runs/other}]"], "heldout[0].model is for listeners of kind captioner and vlm"),
    (["heldout=[{name: x, length_normalised: true}]"], "length_normalised is for listeners of kind captioner and vlm"),
    (["heldout=[{name: x, kind: captioner, model: runs/a, prompt: Hello}]"], "prompt is for listeners of kind vlm"),
    (["heldout=[{name: x, kind: captioner, model: runs/a, clip: lite2}]"], "sees with what its run sees with"),
    (["heldout=[{name: x, kind: vlm, model: a/b, pretrained: x}]"], "sees with its own image tower"),
    (["heldout=[{name: x, kind: vlm, model: a/b, knows: {eyes: animal}}]"], "knows.eyes is for listeners of kind clip"),
    (["heldout=[{name: x, kind: attributes, knows: {names: animal}}]"], "not attributes"),
    (["listeners.0.kind=captioner", "listeners.0.model=runs/a", "listeners.0.learning_rate=0.1"], "kind clip"),
    (["listeners.0.kind=captioner", "listeners.0.model=runs/../runs/mine", "out=runs/mine"], "is this run itself"),
    (["speaker.prompt=Hello"], "speaker.prompt is for speaker.kind vlm"),
    (["speaker.kind=vlm"], "speaker.llm smollm2-135m is an LLM"),
    *((["speaker.kind=vlm", "speaker.llm=a/b", f"speaker.{key}"], f"{key.partition('=')[0]} is for speaker.kind llm")
      for key in ("prefix=4", "audience_width=10", "gated_units=4", "shard=true", "compile=yes")),
    (["speaker.kind=vlm", "speaker.llm=a/b", "task=words"], "begin with the game"),
    (["speaker.kind=vlm", "speaker.llm=a/b", "task=caption", "data.made_captions=true"], "is for speaker.kind llm"),
    (["speaker.kind=vlm", "speaker.llm=a/b", "speaker.lora_rank=2", "game.kl_cost=0.1"], "needs speaker.lora_rank 0"),
    (["name=\"a\\0b\""], "name cannot be"), (["name=\"\\uD800\""], "name cannot be"),
])
def test_what_would_fail_later_is_refused_first(tmp_path, overrides, words):
    assert words in refused(tmp_path, TWO, *overrides)


def test_an_override_names_the_places_of_a_list(tmp_path):
    assert "places 0 to 1" in refused(tmp_path, TWO, "listeners.2.perception=grey")


def test_held_out_listeners_and_further_data_have_the_rules_of_the_others():
    assert {rule_key(f"heldout[3].{f.name}") for f in dataclasses.fields(ListenerConfig)} == {
        rule_key(f"listeners[0].{f.name}") for f in dataclasses.fields(ListenerConfig)}
    assert all(rule_key(f"extra_data[0].{f.name}") == f"data.{f.name}" for f in dataclasses.fields(DataConfig))
