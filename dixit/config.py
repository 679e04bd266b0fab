"""The configuration of a run: a YAML file becomes a tree of frozen dataclasses.

Unknown keys are errors that name the nearest key, `a.b=value` on the command line overrides a value, and the resolved
tree is saved with every run. No default depends on the machine.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import reprlib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dixit.common import DixitError, did_you_mean
from dixit.config_checks import ATTRIBUTES as ATTRIBUTES
from dixit.config_checks import check
from dixit.config_perception import Perception
from dixit.yaml_files import Plain, parse_yaml, read_yaml


@dataclass(frozen=True)
class DataConfig:
    """Images with text. See data/images.py."""

    name: str = "scenes"  # scenes | emoji | clipart | cifar10 | stamps | folder | hub; several: scenes+emoji
    path: str = ""  # folder: an image folder; hub: a dataset's name or local folder
    seed: int = 0  # scenes: every image is a function of (seed, split, index)
    image_size: int = 128  # pixels
    train: int = 8000  # images per split: exactly so many scenes, at most so many of others (0 = all)
    validation: int = 500
    test: int = 1000
    combos: int = 500  # scenes with held-out (colour, shape) combinations
    image_column: str = "image"
    caption_column: str = "caption"
    captions: str = ""  # folder: a file of captions; default: metadata.csv or the like, or text files beside images
    splits: str = "given"  # folder, hub: given: as folders or files name them | hash: by a hash of the names
    attributes: tuple[str, ...] = ()  # scenes, tasks words and caption: all that captions name, e.g. [colour]; empty =
    # the captions of the data set, which name random ones
    made_captions: bool = False  # tasks words and caption: captions of pictures are made from classes and pixels, and
    # not written ones. See training/made_captions.py
    broken: str = "error"  # an image that cannot be read: error | skip: left out, with a warning


@dataclass(frozen=True)
class ClipConfig:
    """An open_clip model: a tower name built here, a folder, or an open_clip name with a tag. See models/clip.py."""

    name: str = "lite0"
    pretrained: str = ""
    width: int = 256  # embedding width of a CLIP built here
    perceptions: tuple[Perception, ...] = ("colour", "grey")  # what its heads are trained on
    names: bool = False  # a CLIP built here names things by its tower's ImageNet classifier. See models/named.py


@dataclass(frozen=True)
class SpeakerConfig:
    """CLIP patches -> adapter -> LLM, or a vision-language model. See models/speaker.py and models/vlm_speaker.py."""

    kind: str = "llm"  # llm | vlm: a vision-language model of Hugging Face, which sees with its own image tower
    llm: str = "smollm2-135m"  # an asset, a Hugging Face name or a folder; vlm: a Hugging Face name or a folder
    prompt: str = "Describe the image in one short sentence."  # vlm: what its captions are an answer to
    init: str = ""  # a run whose adapter to start from, e.g. the caption-pretrained speaker
    prefix: int = 12  # K
    width: int = 256  # adapter width
    layers: int = 2
    heads: int = 8
    max_tokens: int = 24  # T
    audience_width: int = 0  # width of the adapter's audience input: 0 none; 10 observed picks; with gated_units one
    # number for each audience. At 10, captions teach which attributes to name, and the game which ones serve whom
    gated_units: int = 0  # hidden units behind each block that the audience's code switches on and off
    lora_rank: int = 0
    lora_targets: tuple[str, ...] = ()  # names of the LLM's modules that get LoRA; empty = peft's own for the family
    dtype: str = "float32"  # of the frozen LLM: float32 | bfloat16
    shard: bool = False  # shard the frozen LLM's layers among the processes of a training. See models/sharding.py
    compile: str = "auto"  # on a GPU, auto: CUDA graphs | yes: torch.compile too | no: neither. See models/decoder.py


@dataclass(frozen=True)
class KnowledgeConfig:
    """What a listener knows of the world. A KIND is a noun, `not NOUN` or `NOUN or NOUN`, e.g. animal, not animal,
    food or vehicle; any noun of WordNet will do. See data/names.py."""

    eyes: str = ""  # KIND of the classes that it can tell apart (clips with clip.names only); empty = all
    words: str = "expert"  # basic: everyday names only (dog, not dalmatian) | expert: all names
    names: str = ""  # KIND of things whose names it understands, or none; empty = all


@dataclass(frozen=True)
class ListenerConfig:
    """One listener: a CLIP or another model, its perception and vocabulary, and its weight in the reward. See
    models/listeners.py; of kind captioner or vlm, models/literal.py."""

    name: str
    weight: float = 1.0
    kind: str = "clip"  # clip | captioner: a speaker's run | vlm: a vision-language model of Hugging Face; both believe
    # in an image by log p(caption | image) | attributes: reads the scene's record instead of its pixels
    clip: str = "lite0"
    pretrained: str = ""
    model: str = ""  # captioner: the folder of a run; vlm: a Hugging Face name or a folder
    prompt: str = "Describe the image in one short sentence."  # vlm: what its captions are an answer to
    length_normalised: bool = False  # captioner, vlm: log p(caption | image) is divided by the number of tokens
    perception: Perception = "colour"  # a name, or a chain of steps, e.g. [{blur: 3}]. See config_perception.py
    vocabulary: tuple[str, ...] = ()  # the only words it understands; empty = all
    domain: str = ""  # the only class of attribute words it understands, e.g. colour; thing = none; empty = all
    knows: KnowledgeConfig = field(default_factory=KnowledgeConfig)
    language: str = "english"  # english | german
    learning_rate: float = 0.0  # above 0, it keeps learning to find the target from the speaker's captions


@dataclass(frozen=True)
class GameConfig:
    """The reference game and its reward. See training/game.py."""

    candidates: int = 10  # C, the target among them
    pools: int = 1  # sets of distractors that score a caption in training; its reward is their mean
    distractors: str = "random"  # random | in_batch | hard
    audience: str = "all"  # all | sampled: each round, one of positive and one of negative weight | shuffled: a control
    reward: str = "sub_logp"  # sub_logp | sub_prob | sub_chance | sub_acc | product | clip_score | dixit
    normalise: str = "none"  # none | listener: each listener's reward, among the captions of an image, before the sum
    length_cost: float = 0.0  # per token
    repetition_cost: float = 0.0  # per repeated word
    kl_cost: float = 0.0  # per nat of log-probability above the base speaker


@dataclass(frozen=True)
class ContinualConfig:
    """Continual learning over audiences: their order, and the remedy for forgetting. See training/continual.py."""

    order: str = "interleaved"  # interleaved | blocked: each of `audiences` has an equal share of the steps
    remedy: str = "none"  # none | replay | ewc_nodes | hebbian_gate | hebbian_gate+sluggish
    centred: bool = True  # whether the audiences' codes have mean 0; a control without it: no gate forms
    replay: float = 0.25  # fraction of the rounds that replays earlier audiences
    ewc_strength: float = 1.0  # ewc_nodes: weight of the penalty for moving units that earlier audiences use
    hebbian_rate: float = 0.1  # hebbian_gate: rate of Oja's rule, at most 0.25
    sluggish: float = 0.3  # weight of the present audience in a code that lags behind; 1 = no lag


@dataclass(frozen=True)
class PolicyConfig:
    """The update by rewards. See training/policy.py."""

    algorithm: str = "rloo"  # reinforce | self_critical | rloo | grpo | ppo | dpo
    samples: int = 4  # N captions per image
    temperature: float = 1.0
    baseline: str = "all"  # reinforce: one running mean for all rounds | audience: one for each audience
    baseline_decay: float = 0.9  # reinforce: of the running mean
    clip_ratio: float = 0.2  # ppo
    epochs: int = 1  # ppo: passes over each rollout
    beta: float = 0.1  # dpo: the greater, the closer the speaker stays to the base speaker


@dataclass(frozen=True)
class TrainConfig:
    """The training loop. See training/loop.py."""

    steps: int = 300
    batch: int = 16  # B, global: over all processes and micro-batches
    accumulate: int = 1  # micro-batches per step
    optimizer: str = "adamw"  # adamw | sgd
    lr: float = 3e-4
    schedule: str = "cosine"  # cosine | constant, after the warm-up
    warmup: int = 20
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)  # adamw
    clip_norm: float = 1.0  # 0 = gradients are not clipped
    mixed_precision: str = "no"  # no | bf16
    log_every: int = 1
    eval_every: int = 100
    save_every: int = 100
    keep_last: int = 2  # checkpoints that are kept, the newest
    best: str = ""  # a validation figure, e.g. gap, or -loss where less is better: its best checkpoint is kept too
    max_skipped: int = 5  # steps in a row that may be skipped because a loss or gradient was not finite
    timeout: int = 600  # seconds that processes wait for one another before the run ends with an error
    log_max_mb: int = 100  # log.jsonl grows no larger; what it held before is then log.old.jsonl, which it replaces
    trackers: tuple[str, ...] = ()  # tensorboard, wandb, trackio; JSONL is always written


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation on fixed pools. See eval/evaluate.py."""

    split: str = "test"
    images: int = 500
    seed: int = 1234  # of the pools
    checkpoint: str = "last"  # last | best (of train.best)
    batch: int = 64


@dataclass(frozen=True)
class Config:
    """One run."""

    task: str = "game"  # clip | words | caption | game
    name: str = "run"
    out: str = ""  # default: runs/<name>
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    extra_data: tuple[DataConfig, ...] = ()  # clip only: trained on besides `data`
    clip: ClipConfig = field(default_factory=ClipConfig)
    speaker: SpeakerConfig = field(default_factory=SpeakerConfig)
    listeners: tuple[ListenerConfig, ...] = ()
    heldout: tuple[ListenerConfig, ...] = ()  # held-out listeners: evaluated, never trained with
    audiences: tuple[tuple[str, str], ...] = ()  # pairs of listeners: the first should find the target, the second not
    unseen: tuple[tuple[str, str], ...] = ()  # audiences that are evaluated, never trained on
    picks: tuple[int, ...] = (0, 4, 16, 64)  # numbers of observed picks of each listener; a round draws one of them
    oracle: tuple[str, ...] = ()  # what the oracle speaker names, e.g. [colour], or [colour, shape, left]
    oracle_clip: str = ""  # pictures: a CLIP with clip.names, in no listener, from whose classes the oracle speaker
    # chooses what to name. See eval/oracle.py
    game: GameConfig = field(default_factory=GameConfig)
    continual: ContinualConfig = field(default_factory=ContinualConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    @property
    def folder(self) -> Path:
        return Path(self.out or f"runs/{self.name}")


# Old name -> new name of keys that were renamed: a config with an old name is refused with the new one.
RENAMED = {"speaker.context": "speaker.audience_width", "speaker.units": "speaker.gated_units",
           "continual.holding": "continual.ewc_strength", "continual.gating": "continual.hebbian_rate"}


def build(kind: Any, value: Any, where: str = "") -> Any:
    """Turn the values of a YAML file into `kind`, checking every key and type. `where` is the dotted path.

    Where a text is wanted, an unquoted scalar is taken as it is written: `no`, `2026` and `1e3` are texts there. No
    value at all (`key=`, `key:`) is the empty text or list, or a section of defaults.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return build(_member(args, value), value, where)
    empty = isinstance(value, Plain) and value.value is None
    if dataclasses.is_dataclass(kind):
        return _build_section(kind, {} if empty else value, where)
    if origin is tuple:
        value = [] if empty else value
        if not isinstance(value, list | tuple):
            raise DixitError(f"config: {where} must be a list, not {_shown(value)}")
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            raise DixitError(f"config: {where} must have {len(kinds)} values, not {len(value)}")
        return tuple(build(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if kind is types.NoneType:
        return None
    if isinstance(value, Plain):
        value = _plain_value(kind, value)
    elif kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        value = _plain_value(kind, Plain(str(value), value))
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise DixitError(f"config: {where} must be {kind.__name__}, not {_shown(value)}")
    if kind is float and not math.isfinite(value) or kind is str and re.search(r"[\0-\x1f\x7f\ud800-\udfff]", value):
        raise DixitError(f"config: {where} cannot be {_shown(value)}")
    return value


def _member(kinds: tuple[Any, ...], value: Any) -> Any:
    """The kind of a union that a value is meant as, by its form: nothing, a list, a section or a scalar. If none has
    this form it is the last one, whose error says what is wanted."""
    def form(kind: Any) -> str:
        if kind is types.NoneType:
            return "nothing"
        return "list" if typing.get_origin(kind) is tuple else "section" if dataclasses.is_dataclass(kind) else "scalar"

    wanted = "list" if isinstance(value, list | tuple) else "section" if isinstance(value, dict) else "scalar"
    if isinstance(value, Plain) and value.value is None and types.NoneType in kinds:
        wanted = "nothing"
    return next((kind for kind in kinds if form(kind) == wanted), [k for k in kinds if k is not types.NoneType][-1])


def _plain_value(kind: Any, scalar: Plain) -> Any:
    """An unquoted scalar as a text, or as a number in decimal digits: YAML would read 010 as 8 and 1:30 as 90."""
    if kind is str:
        return "" if scalar.value is None else str(scalar)
    if kind is bool or not re.fullmatch(r"[-+]?[\d_]*\.?[\d_]*(e[-+]?\d+)?", scalar, re.IGNORECASE):
        return scalar.value
    try:
        return kind(scalar)
    except ValueError:
        return scalar.value


def _shown(value: Any) -> str:
    return reprlib.repr(str(value) if isinstance(value, Plain) else value)


def _build_section(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise DixitError(f"config: {where or 'the file'} must be a mapping of keys to values")
    hints = typing.get_type_hints(kind)
    for key in value:
        path = f"{where}.{key}" if where else str(key)
        if key not in hints:
            if path in RENAMED:
                raise DixitError(f"config: '{path}' is called '{RENAMED[path]}' now; rename it")
            prefix = f"{where}." if where else ""
            raise DixitError(f"config: unknown key '{path}'; {did_you_mean(str(key), hints, prefix)}")
    built = {k: build(hints[k], v, f"{where}.{k}" if where else k) for k, v in value.items()}
    missing = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING
               and f.default_factory is dataclasses.MISSING and f.name not in built]
    if missing:
        raise DixitError(f"config: {where} lacks '{missing[0]}'")
    return kind(**built)


def _override(tree: dict, assignment: str) -> None:
    """Apply one `a.b=value` (the value is YAML; `a.0.b` reaches into lists)."""
    path, equals, text = assignment.partition("=")
    if not equals:
        raise DixitError(f"config: '{assignment}' is not an override; write key.subkey=value")
    value = parse_yaml(text, f"the value of '{path}'") if text.strip() else Plain("", None)
    node: Any = tree
    *parents, last = path.split(".")
    for depth, key in enumerate(parents):
        inner = node[_place(node, key, path)] if isinstance(node, list) else node.get(key)
        if isinstance(node, dict) and (inner is None or isinstance(inner, Plain) and inner.value is None):
            inner = node[key] = {}
        if not isinstance(inner, dict | list):
            raise DixitError(f"config: '{path}' does not lead to a key, because '{'.'.join(parents[:depth + 1])}' is a "
                             "value")
        node = inner
    node[_place(node, last, path) if isinstance(node, list) else last] = value


def _place(node: list, key: str, path: str) -> int:
    """The place in a list that an override's path names."""
    if not key.isdecimal() or int(key) >= len(node):
        have = f"places 0 to {len(node) - 1}" if node else "no items"
        raise DixitError(f"config: '{path}' does not lead to a key: '{key}' is no place in a list with {have}")
    return int(key)


def read_tree(path: str | Path | None, overrides: list[str] | tuple[str, ...] = ()) -> dict:
    """The values of a YAML file (no file: none) with dotted overrides applied; `build` checks them."""
    tree = read_yaml(path) if path else None
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise DixitError(f"config: {path} must be a mapping of keys to values")
    for assignment in overrides:
        _override(tree, assignment)
    return tree


def refuse_doubled(overrides: list[str]) -> None:
    """Raises DixitError if a command line gives a key twice. (In code the last of several overrides counts.)"""
    keys = [assignment.partition("=")[0] for assignment in overrides]
    for key in keys:
        if keys.count(key) > 1:
            raise DixitError(f"config: '{key}' is given {keys.count(key)} times on the command line; give it once")


def configs_folder() -> Path:
    """The folder of the configs that come with dixit: inside the installed package, or beside it in a clone."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "configs"


def find_config(name: str | Path) -> Path:
    """A config file by its path, or by its name among those that come with dixit ("colour_vs_grey").

    A name is looked up in configs/ first, then in configs/pairs/, configs/pictures/ and configs/recipes/. Raises
    DixitError, with the nearest name, if there is none.
    """
    if Path(name).exists():
        return Path(name)
    folder = configs_folder()
    shipped = {path.relative_to(folder).with_suffix("").as_posix(): path
               for path in sorted(folder.rglob("*.yaml")) if path.parent.name not in ("accelerate", "dynamics")}
    wanted = str(name).removesuffix(".yaml").removeprefix("configs/")
    for key in (wanted, *(f"{part}/{wanted}" for part in ("pairs", "pictures", "recipes"))):
        if key in shipped:
            return shipped[key]
    if str(name).endswith((".yaml", ".yml")):
        return Path(name)  # `load_config` says that there is no such file
    raise DixitError(f"there is no config {name}, by this path or name; {did_you_mean(wanted, shipped)}")


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a YAML file and apply dotted overrides. Raises DixitError on anything unknown or ill-typed."""
    config = build(Config, {"name": Path(path).stem} | read_tree(path, overrides))
    check(config)
    return config


def to_dict(config: Any) -> dict:
    """The resolved tree as plain values, ready for YAML or JSON; without keys that have no value."""
    return json.loads(json.dumps(dataclasses.asdict(
        config, dict_factory=lambda pairs: {key: value for key, value in pairs if value is not None})))


def changed(before: Config, after: Config) -> list[tuple[str, Any, Any]]:
    """The settings that differ: (dotted key, before, after), in the order of the tree; a list counts as one setting."""
    def flat(config: Config) -> dict[str, Any]:
        return {f"{key}.{name}" if name else key: value for key, part in to_dict(config).items()
                for name, value in (part.items() if isinstance(part, dict) else [("", part)])}

    old, new = flat(before), flat(after)
    return [(key, old[key], new[key]) for key in old if old[key] != new[key]]


def config_hash(config: Config) -> str:
    """12 hex digits that change with any value of the resolved config that says what is trained.

    Where it is written does not, nor how long processes wait for one another or how large the log grows.
    """
    tree = to_dict(config) | {"out": "", "name": ""}
    for key in ("timeout", "log_max_mb"):
        del tree["train"][key]
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]


def settings_hash(config: Config) -> str:
    """12 hex digits of the settings that differ from their defaults, so that a new key with a default changes nothing.

    Left out is what does not change the result: name and place of the run, the path of the speaker it starts from, how
    long processes wait for one another, how large the log grows.
    """
    def differing(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            pairs = ((f, getattr(value, f.name)) for f in dataclasses.fields(value))
            return {f.name: differing(part) for f, part in pairs if part != (
                f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default)}
        return [differing(part) for part in value] if isinstance(value, tuple) else value

    plain = dataclasses.replace(
        config, name=Config.name, out=Config.out, speaker=dataclasses.replace(config.speaker, init=SpeakerConfig.init),
        train=dataclasses.replace(config.train, timeout=TrainConfig.timeout, log_max_mb=TrainConfig.log_max_mb))
    return hashlib.sha256(json.dumps(differing(plain), sort_keys=True).encode()).hexdigest()[:12]
