"""What the types of a config cannot say: the choices and ranges of its values, and which of them go together.

Values that numpy, torch or a library would refuse later are refused here, before anything is computed. Leaves out what
takes a look at files, such as whether a model or a data set is there.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dixit.common import DixitError, did_you_mean
from dixit.config_perception import check_perception, perception_label

if TYPE_CHECKING:
    from dixit.config import Config, ListenerConfig

# What captions of scenes can name of an object (data/scenes.py): an audience is known by these, or by as many
# attributes of pictures (training/requests.py).
ATTRIBUTES = ("size", "colour", "texture", "shape", "position")
DOMAINS = ("colour", "shape", "position", "size", "texture", "count", "thing")  # classes of words (data/scenes.py),
# and none of them
REGIONS = ("left", "right", "middle", "outer")  # of a scene (data/scenes.py)
PERCEPTIONS = ("colour", "grey", "blur", "low_resolution", "left_half", "right_half", "centre_crop", "occluded",
               "channel_swapped")  # models/perception.py
DATA = ("scenes", "emoji", "clipart", "cifar10", "stamps", "folder", "hub")  # data/images.py

# Dotted key, without places in lists -> the values that a text may have.
CHOICES = {
    "task": ("clip", "words", "caption", "game"),
    "data.splits": ("given", "hash"), "data.broken": ("error", "skip"), "clip.perceptions": PERCEPTIONS,
    "listeners.kind": ("clip", "captioner", "vlm", "attributes"), "listeners.language": ("english", "german"),
    "listeners.knows.words": ("basic", "expert"),
    "listeners.perception": PERCEPTIONS, "listeners.perception.colour_blind": ("protan", "deutan", "tritan"),
    "listeners.domain": ("", *DOMAINS),
    "oracle": (*ATTRIBUTES, *REGIONS), "data.attributes": ATTRIBUTES,
    "speaker.kind": ("llm", "vlm"), "speaker.dtype": ("float32", "bfloat16"), "speaker.compile": ("auto", "yes", "no"),
    "game.reward": ("sub_logp", "sub_prob", "sub_chance", "sub_acc", "product", "clip_score", "dixit"),
    "game.distractors": ("random", "in_batch", "hard"), "game.audience": ("all", "sampled", "shuffled"),
    "game.normalise": ("none", "listener"), "policy.baseline": ("all", "audience"),
    "policy.algorithm": ("reinforce", "self_critical", "rloo", "grpo", "ppo", "dpo"),
    "continual.order": ("interleaved", "blocked"),
    "continual.remedy": ("none", "replay", "ewc_nodes", "hebbian_gate", "hebbian_gate+sluggish"),
    "train.optimizer": ("adamw", "sgd"), "train.schedule": ("cosine", "constant"),
    "train.mixed_precision": ("no", "bf16"), "train.trackers": ("tensorboard", "wandb", "trackio"),
    "eval.split": ("train", "validation", "test", "combos"), "eval.checkpoint": ("last", "best"),
}
# Texts that anything may be, and those that must not be empty.
FREE = {"out", "data.path", "data.image_column", "data.caption_column", "data.captions", "clip.pretrained",
        "oracle_clip", "speaker.init", "speaker.prompt", "listeners.pretrained", "listeners.vocabulary", "train.best",
        "listeners.model", "listeners.prompt",
        "listeners.knows.eyes", "listeners.knows.names", "speaker.lora_targets"}
NOT_EMPTY = {"name", "clip.name", "data.name", "speaker.llm", "listeners.name", "listeners.clip", "audiences", "unseen"}

SEED = "[0, 4294967295]"  # what numpy takes
ANY = "(-inf, inf)"
# Dotted key, without places in lists -> the numbers that are allowed, as an interval.
RANGES = {
    "seed": SEED, "data.seed": SEED, "eval.seed": SEED,
    "data.image_size": "[16, 1024]", "data.train": "[0, 100000000]", "data.validation": "[0, 100000000]",
    "data.test": "[0, 100000000]", "data.combos": "[0, 100000000]",
    "clip.width": "[1, 16384]",
    "speaker.prefix": "[1, 1024]", "speaker.width": "[1, 16384]", "speaker.layers": "[1, 128]",
    "speaker.heads": "[1, 1024]", "speaker.max_tokens": "[1, 4096]", "speaker.audience_width": "[0, 4096]",
    "speaker.gated_units": "[0, 65536]", "speaker.lora_rank": "[0, 4096]",
    "listeners.weight": ANY, "listeners.learning_rate": "[0, inf)",
    "listeners.perception.blur": "(0, 64]", "listeners.perception.jpeg": "[1, 100]",
    "listeners.perception.crop": "[0, 1]", "listeners.perception.occlude": "[0, 1]",
    "listeners.perception.rotate_hue": "[-180, 180]", "listeners.perception.cataract": "(0, 1]",
    "listeners.perception.noise": "(0, 1]", "listeners.perception.downsample": "[1, 1024]",
    "listeners.perception.contrast": "[0, 1]",
    "picks": "[0, 100000]",
    "game.candidates": "[2, 100000]", "game.pools": "[1, 1000]", "game.length_cost": ANY,
    "game.repetition_cost": ANY, "game.kl_cost": "[0, inf)",
    "continual.replay": "(0, 1]", "continual.ewc_strength": "[0, inf)", "continual.hebbian_rate": "(0, 0.25]",
    "continual.sluggish": "(0, 1]",
    "policy.samples": "[1, 4096]", "policy.temperature": "[0.01, 100]", "policy.baseline_decay": "[0, 1)",
    "policy.clip_ratio": "(0, 1)", "policy.epochs": "[1, 1000]", "policy.beta": "(0, inf)",
    "train.steps": "[1, 1000000000]", "train.batch": "[1, 1000000]", "train.accumulate": "[1, 1000000]",
    "train.lr": "[0, inf)", "train.warmup": "[0, 1000000000]", "train.weight_decay": "[0, inf)",
    "train.betas": "[0, 1)", "train.clip_norm": "[0, inf)", "train.log_every": "[1, 1000000000]",
    "train.eval_every": "[1, 1000000000]", "train.save_every": "[1, 1000000000]", "train.keep_last": "[1, 1000000]",
    "train.max_skipped": "[0, 1000000000]", "train.timeout": "[1, 2592000]", "train.log_max_mb": "[1, 1000000]",
    "eval.images": "[1, 100000000]", "eval.batch": "[1, 1000000]",
}


def check(config: Config) -> None:
    """Raises DixitError, with key and remedy, for values out of range and values that do not go together."""
    for i, perception in enumerate(config.clip.perceptions):
        check_perception(f"clip.perceptions[{i}]", perception)
    for group in ("listeners", "heldout"):
        for i, listener in enumerate(getattr(config, group)):
            check_perception(f"{group}[{i}].perception", listener.perception)
    for where, value in leaves(config):
        _check_value(where, value)
    _check_lists(config)
    _check_game(config)
    _check_speaker(config)
    _check_continual(config)
    _check_train(config)


def leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted key and value of every number and text of a tree of dataclasses."""
    if isinstance(value, tuple):
        for i, part in enumerate(value):
            yield from leaves(part, f"{where}[{i}]")
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from leaves(getattr(value, name), f"{where}.{name}" if where else name)
    elif value is not None:
        yield where, value


def rule_key(where: str) -> str:
    """The key under which the tables above hold the rule of a value: heldout[1].clip is listeners.clip there."""
    key = re.sub(r"\[\d+]", "", where)
    for group, other in (("heldout.", "listeners."), ("extra_data.", "data."),
                         ("clip.perceptions.", "listeners.perception.")):
        key = key.replace(group, other)
    return key


def _check_value(where: str, value: Any) -> None:
    key = rule_key(where)
    if key in CHOICES and value not in CHOICES[key]:
        raise DixitError(f"config: {where} is '{value}'; {did_you_mean(value, [c for c in CHOICES[key] if c])}")
    if key in NOT_EMPTY and not value.strip():
        raise DixitError(f"config: {where} is empty; give it a value")
    if key in RANGES and not is_inside(value, RANGES[key]):
        raise DixitError(f"config: {where} is {value}; choose a number in {RANGES[key]}")


def is_inside(value: int | float, interval: str) -> bool:
    """Whether a number is in an interval such as "[0, 1)"."""
    low, high = (float(part) for part in interval[1:-1].split(","))
    return (low <= value if interval[0] == "[" else low < value) and \
        (value <= high if interval[-1] == "]" else value < high) and math.isfinite(value)


def _check_lists(config: Config) -> None:
    for where, data in (("data", config.data), *((f"extra_data[{i}]", d) for i, d in enumerate(config.extra_data))):
        for part in data.name.split("+"):
            if part not in DATA:
                raise DixitError(f"config: {where}.name is '{data.name}'; {did_you_mean(part, DATA)}, or several "
                                 "joined by +")
        for split in ("train", "validation", "test", "combos") if "scenes" in data.name.split("+") else ():
            if getattr(data, split) < 1:
                raise DixitError(f"config: {where}.{split} is 0; choose at least 1 scene (other images take 0 for all)")
    for group in ("listeners", "heldout"):
        for i, listener in enumerate(getattr(config, group)):
            _check_listener(f"{group}[{i}]", listener, config)
    names = [listener.name for listener in config.listeners]
    unique = {"listeners": names, "heldout": [listener.name for listener in config.heldout],
              "train.trackers": list(config.train.trackers),
              "clip.perceptions": list(map(perception_label, config.clip.perceptions))}
    for where, values in unique.items():
        for value in values:
            if values.count(value) > 1:
                mend = "give each its own name" if where in ("listeners", "heldout") else "keep one"
                raise DixitError(f"config: '{value}' stands {values.count(value)} times in {where}; {mend}")
    if not config.clip.perceptions:
        raise DixitError("config: clip.perceptions is empty; name at least one, e.g. [colour]")
    if not config.picks:
        raise DixitError("config: picks is empty; give at least one number, e.g. [0, 4, 16, 64]")
    for where, pairs in (("audiences", config.audiences), ("unseen", config.unseen)):
        for pair in pairs:
            for name in pair:
                if name not in names:
                    raise DixitError(f"config: {where} {list(pair)} names '{name}', which is no listener; "
                                     f"{did_you_mean(name, names)}")
            if pair[0] == pair[1]:
                raise DixitError(f"config: {where} {list(pair)} is one listener twice; an audience is two")


def _check_listener(where: str, listener: ListenerConfig, config: Config) -> None:
    kind, plain, captions = listener.kind, type(listener)(""), listener.kind in ("captioner", "vlm")
    if kind == "attributes" and listener.knows != plain.knows:
        raise DixitError(f"config: {where}.knows is for listeners of kind clip, captioner and vlm, not attributes")
    if captions and listener.knows.eyes:
        raise DixitError(f"config: {where}.knows.eyes is for listeners of kind clip, whose eyes have classes, not "
                         f"{kind}; leave it out, or use knows.names")
    if captions and not listener.model:
        raise DixitError(f"config: {where}.model is empty; a listener of kind {kind} needs "
                         + ("the folder of a speaker's run, e.g. runs/caption_scenes" if kind == "captioner" else
                            "a Hugging Face name or a folder, e.g. HuggingFaceTB/SmolVLM-256M-Instruct"))
    for key in ("clip", "pretrained"):
        if captions and getattr(listener, key) != getattr(plain, key):
            raise DixitError(f"config: {where}.{key} is for listeners of kind clip; a {kind} sees with "
                             + ("what its run sees with" if kind == "captioner" else "its own image tower")
                             + ", so leave it out")
    for key, of in ("model", "captioner and vlm"), ("length_normalised", "captioner and vlm"), ("prompt", "vlm"):
        if kind not in of.split() and getattr(listener, key) != getattr(plain, key):
            raise DixitError(f"config: {where}.{key} is for listeners of kind {of}, not {kind}; leave it out")
    if kind == "captioner" and os.path.realpath(listener.model) == os.path.realpath(config.folder):
        raise DixitError(f"config: {where}.model {listener.model} is this run itself, and a listener must not be the "
                         "speaker that is trained; name the run that it starts from, or another")


def _check_game(config: Config) -> None:
    for group in ("listeners", "heldout"):
        for i, listener in enumerate(getattr(config, group)):
            if listener.learning_rate and (group == "heldout" or listener.kind != "clip"):
                raise DixitError(f"config: {group}[{i}].learning_rate must be 0; only listeners of kind clip that are "
                                 "trained with can learn")
    if config.data.made_captions and config.task not in ("words", "caption"):
        raise DixitError(f"config: data.made_captions is for the tasks words and caption, not {config.task}; leave it "
                         "out")
    if config.data.attributes and (config.task not in ("words", "caption") or config.data.name != "scenes"):
        raise DixitError(f"config: data.attributes is for the tasks words and caption on scenes, not {config.task} on "
                         f"{config.data.name}; leave it out")
    if config.task == "game" and not config.listeners:
        raise DixitError("config: listeners is empty; a game needs at least one listener")
    if config.game.normalise == "listener":
        _check_normalised(config)
    if config.policy.algorithm in ("rloo", "grpo", "dpo") and config.policy.samples < 2:
        raise DixitError(f"config: policy.algorithm {config.policy.algorithm} needs policy.samples >= 2")
    if config.policy.algorithm == "ppo" and config.train.save_every % config.policy.epochs:
        raise DixitError("config: train.save_every must be a multiple of policy.epochs, so that a resumed run starts "
                         "with a fresh rollout")
    if config.policy.baseline == "audience" and config.policy.algorithm != "reinforce":
        raise DixitError(f"config: policy.baseline audience is for policy.algorithm reinforce; "
                         f"{config.policy.algorithm} keeps no running mean, so leave it out")
    if config.policy.algorithm == "reinforce" and config.train.accumulate > 1:
        raise DixitError("config: policy.algorithm reinforce needs train.accumulate 1, for its baseline moves once a "
                         "step; rloo, grpo and self_critical accumulate")


def _check_normalised(config: Config) -> None:
    if config.game.reward == "dixit":
        raise DixitError("config: game.normalise listener needs a game.reward that is a sum over listeners, e.g. "
                         "sub_prob; dixit is none")
    if config.policy.samples < 2:
        raise DixitError("config: game.normalise listener needs policy.samples >= 2, to compare an image's captions")
    if config.policy.algorithm == "self_critical":
        raise DixitError("config: game.normalise listener cannot be used with policy.algorithm self_critical, whose "
                         "greedy caption is not among those that are normalised; choose rloo")


def _check_speaker(config: Config) -> None:
    speaker, picks_width = config.speaker, 2 * len(ATTRIBUTES)
    _check_speaker_kind(config)
    if speaker.width % speaker.heads:
        raise DixitError(f"config: speaker.width {speaker.width} must be a multiple of speaker.heads {speaker.heads}")
    width = speaker.audience_width
    if config.audiences and not speaker.gated_units and width not in (0, picks_width):
        raise DixitError(f"config: speaker.audience_width must be {picks_width} with audiences, or 0 for a speaker "
                         "without an audience input")
    if width and not config.audiences and config.task != "caption":
        raise DixitError("config: speaker.audience_width needs audiences; list pairs of listeners under audiences")
    if config.task == "caption" and width not in (0, picks_width):
        raise DixitError(f"config: speaker.audience_width must be {picks_width} for captions that name requested "
                         "attributes, or 0")
    if width and config.data.made_captions and "scenes" in config.data.name.split("+"):
        raise DixitError("config: data.made_captions with speaker.audience_width is for pictures only, for what can be "
                         "requested of scenes is something else; take scenes out of data.name")
    if speaker.lora_rank and config.game.kl_cost:
        raise DixitError("config: game.kl_cost needs speaker.lora_rank 0, for with LoRA the LLM itself moves")
    if speaker.lora_rank and config.policy.algorithm == "dpo":
        raise DixitError("config: policy.algorithm dpo needs speaker.lora_rank 0, for its reference is the base "
                         "speaker, and with LoRA the LLM itself moves")
    if speaker.shard and (speaker.lora_rank or speaker.compile == "yes"):
        raise DixitError("config: speaker.shard needs speaker.lora_rank 0 and speaker.compile auto or no, for a layer "
                         "of a sharded LLM is together only while it runs")


def _check_speaker_kind(config: Config) -> None:
    speaker, plain = config.speaker, type(config.speaker)()
    if speaker.kind == "llm":
        if speaker.prompt != plain.prompt:
            raise DixitError("config: speaker.prompt is for speaker.kind vlm; leave it out, for the prefix alone "
                             "conditions an LLM")
        return
    if speaker.llm == plain.llm:
        raise DixitError(f"config: speaker.llm {speaker.llm} is an LLM, and speaker.kind vlm needs a vision-language "
                         "model; give a Hugging Face name or a folder, e.g. HuggingFaceTB/SmolVLM-256M-Instruct")
    for key in ("prefix", "audience_width", "gated_units", "shard", "compile"):
        if getattr(speaker, key) != getattr(plain, key):
            raise DixitError(f"config: speaker.{key} is for speaker.kind llm, not vlm; leave it out")
    if config.task == "words":
        raise DixitError("config: the task words is for speaker.kind llm; a vision-language model needs no warm start, "
                         "so begin with the game, or with the task caption")
    if config.data.made_captions:
        raise DixitError("config: data.made_captions is for speaker.kind llm, for they are made from what a speaker's "
                         "CLIP names; leave it out")


def _check_continual(config: Config) -> None:
    rules, count = config.continual, len(config.audiences)
    if config.speaker.gated_units and (not count or config.speaker.audience_width != count or config.unseen):
        raise DixitError(f"config: speaker.gated_units needs audiences, as many as speaker.audience_width is wide "
                         f"({count} here), and none unseen, because an audience's code says nothing about others")
    if config.speaker.gated_units and config.speaker.lora_rank:
        raise DixitError("config: speaker.gated_units needs speaker.lora_rank 0, because only the units are "
                         "trained then")
    if rules.remedy != "none" and not config.speaker.gated_units:
        raise DixitError(f"config: continual.remedy {rules.remedy} needs speaker.gated_units, which it works on")
    if rules.order == "blocked" and config.train.steps < count:
        raise DixitError(f"config: train.steps must be at least {count}, one for each audience")


def _check_train(config: Config) -> None:
    settings = config.train
    if settings.batch % settings.accumulate:
        raise DixitError(f"config: train.batch {settings.batch} must be a multiple of train.accumulate "
                         f"{settings.accumulate}")
    if settings.best:
        names = _validation_figures(config)
        if not any(re.fullmatch(name.replace("*", ".*"), settings.best.removeprefix("-")) for name in names):
            raise DixitError(f"config: train.best '{settings.best}' is no validation figure; choose of "
                             f"{', '.join(names)}, with - before it where less is better")


def _validation_figures(config: Config) -> list[str]:
    """The names of what a task measures on its validation split (a * stands for anything)."""
    if config.task == "game":
        return ["gap", "gap_constant", "commonest_caption", "kernel_distance", "prefix_dimensions",
                *(f"accuracy/{re.escape(c.name)}" for c in config.listeners),
                *("gap/" + re.escape("-".join(pair)) for pair in config.audiences)]
    return {"clip": ["r1_of_10/*"], "words": ["loss"], "caption": ["loss", "recall/colour", "recall/shape", "obeys"]}[
        config.task]
