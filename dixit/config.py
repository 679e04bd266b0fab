"""The configuration of a run: a YAML file becomes a tree of frozen dataclasses.

Unknown keys are errors that name the nearest key, `a.b=value` on the command line overrides a value, and the resolved
tree is saved with every run. No default depends on the machine.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import reprlib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dixit.common import DixitError

# What captions of scenes can name of an object (data/scenes.py): an audience is known by these.
ATTRIBUTES = ("size", "colour", "texture", "shape", "position")


@dataclass(frozen=True)
class DataConfig:
    """Images with text. See data/images.py."""

    name: str = "scenes"  # scenes | emoji | cifar10 | stamps | folder | hub; several: scenes+emoji
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
    broken: str = "error"  # an image that cannot be read: error | skip: left out, with a warning


@dataclass(frozen=True)
class ClipConfig:
    """An open_clip model: a tower name built here, a folder, or an open_clip name with a tag. See models/clip.py."""

    name: str = "lite0"
    pretrained: str = ""
    width: int = 256  # embedding width of a CLIP built here
    perceptions: tuple[str, ...] = ("colour", "grey")  # what its heads are trained on


@dataclass(frozen=True)
class SpeakerConfig:
    """CLIP patches -> adapter -> LLM. See models/speaker.py."""

    llm: str = "smollm2-135m"  # an asset, a Hugging Face name or a folder
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
    dtype: str = "float32"  # of the frozen LLM: float32 | bfloat16
    shard: bool = False  # shard the frozen LLM's layers among the processes of a training. See models/sharding.py
    compile: str = "auto"  # on a GPU, auto: CUDA graphs | yes: torch.compile too | no: neither. See models/decoder.py


@dataclass(frozen=True)
class ListenerConfig:
    """One listener: a CLIP, its perception and vocabulary, and its weight in the reward. See models/listeners.py."""

    name: str
    weight: float = 1.0
    kind: str = "clip"  # clip | attributes: reads the scene's record instead of its pixels
    clip: str = "lite0"
    pretrained: str = ""
    perception: str = "colour"
    vocabulary: tuple[str, ...] = ()  # the only words it understands; empty = all
    domain: str = ""  # the only word class it understands, e.g. "shape"; empty = all
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
    """The policy-gradient update. See training/policy.py."""

    algorithm: str = "rloo"  # reinforce | self_critical | rloo | grpo | ppo
    samples: int = 4  # N captions per image
    temperature: float = 1.0
    baseline_decay: float = 0.9  # reinforce: of the running mean
    clip_ratio: float = 0.2  # ppo
    epochs: int = 1  # ppo: passes over each rollout


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
    """Turn plain YAML values into `kind`, checking every key and type. `where` is the dotted path."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise DixitError(f"config: {where or 'the file'} must be a mapping of keys to values")
        hints = typing.get_type_hints(kind)
        for key in value:
            if key not in hints:
                if f"{where}.{key}" in RENAMED:
                    raise DixitError(f"config: '{where}.{key}' is called '{RENAMED[f'{where}.{key}']}' now; rename it")
                near = difflib.get_close_matches(str(key), hints, n=1, cutoff=0.0)
                raise DixitError(f"config: unknown key '{f'{where}.{key}' if where else key}'; "
                                 f"did you mean '{f'{where}.{near[0]}' if where else near[0]}'?")
        built = {k: build(hints[k], v, f"{where}.{k}" if where else k) for k, v in value.items()}
        missing = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING
                   and f.default_factory is dataclasses.MISSING and f.name not in built]
        if missing:
            raise DixitError(f"config: {where} lacks '{missing[0]}'")
        make: Any = kind
        return make(**built)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise DixitError(f"config: {where} must be a list, not {reprlib.repr(value)}")
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            raise DixitError(f"config: {where} must have {len(kinds)} values, not {len(value)}")
        return tuple(build(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if isinstance(kind, types.UnionType):
        kind = next(k for k in args if k is not types.NoneType)
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            value = float(value)  # YAML reads 1e-4 as text
        except ValueError:
            pass
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise DixitError(f"config: {where} must be {kind.__name__}, not {reprlib.repr(value)}")
    if kind is float and not math.isfinite(value) or kind is str and "\0" in value:
        raise DixitError(f"config: {where} cannot be {reprlib.repr(value)}")
    return value


def _override(tree: dict, assignment: str) -> None:
    """Apply one `a.b=value` (the value is YAML; `a.0.b` reaches into lists)."""
    path, equals, text = assignment.partition("=")
    if not equals:
        raise DixitError(f"config: '{assignment}' is not an override; write key.subkey=value")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise DixitError(f"config: the value of '{assignment}' is not valid YAML") from None
    node: Any = tree
    keys: list[Any] = path.split(".")
    for depth, key in enumerate(keys):
        if isinstance(node, list) and key.isdigit() and int(key) < len(node):
            key = int(key)
        elif not isinstance(node, dict):
            raise DixitError(f"config: '{path}' does not lead to a key")
        if depth == len(keys) - 1:
            node[key] = value
        else:
            node = node.setdefault(key, {}) if isinstance(node, dict) else node[key]


def read_tree(path: str | Path | None, overrides: list[str] | tuple[str, ...] = ()) -> dict:
    """The plain values of a YAML file (no file: none) with dotted overrides applied; `build` checks them."""
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {} if path else {}
    except OSError as error:
        raise DixitError(f"cannot read the config {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DixitError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(tree, dict):
        raise DixitError(f"config: {path} must be a mapping of keys to values")
    for assignment in overrides:
        _override(tree, assignment)
    return tree


def configs_folder() -> Path:
    """The folder of the configs that come with dixit: inside the installed package, or beside it in a clone."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "configs"


def find_config(name: str | Path) -> Path:
    """A config file by its path, or by its name among those that come with dixit ("colour_vs_grey").

    A name is looked up in configs/ first and in configs/pairs/ second. Raises DixitError, with the nearest name, if
    there is none.
    """
    if Path(name).exists():
        return Path(name)
    folder = configs_folder()
    shipped = {path.relative_to(folder).with_suffix("").as_posix(): path
               for path in sorted(folder.rglob("*.yaml")) if path.parent.name not in ("accelerate", "dynamics")}
    wanted = str(name).removesuffix(".yaml").removeprefix("configs/")
    for key in (wanted, f"pairs/{wanted}"):
        if key in shipped:
            return shipped[key]
    if str(name).endswith((".yaml", ".yml")):
        return Path(name)  # `load_config` says that there is no such file
    near = difflib.get_close_matches(wanted, shipped, n=1, cutoff=0.0)[0]
    raise DixitError(f"there is no config {name}; did you mean {near}? (one of {', '.join(shipped)}, or the path of a "
                     "YAML file)")


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a YAML file and apply dotted overrides. Raises DixitError on anything unknown or ill-typed."""
    config = build(Config, {"name": Path(path).stem} | read_tree(path, overrides))
    _check(config)
    return config


def _check(config: Config) -> None:
    """What types cannot say."""
    def choose(where: str, value: str, allowed: tuple[str, ...]) -> None:
        if value not in allowed:
            near = difflib.get_close_matches(value, allowed, n=1, cutoff=0.0)[0]
            raise DixitError(f"config: {where} is '{value}'; did you mean '{near}'? "
                             f"(one of {', '.join(allowed)})")

    choose("task", config.task, ("clip", "words", "caption", "game"))
    choose("game.reward", config.game.reward,
           ("sub_logp", "sub_prob", "sub_chance", "sub_acc", "product", "clip_score", "dixit"))
    choose("game.distractors", config.game.distractors, ("random", "in_batch", "hard"))
    choose("game.audience", config.game.audience, ("all", "sampled", "shuffled"))
    for group in ("listeners", "heldout"):
        for i, listener in enumerate(getattr(config, group)):
            choose(f"{group}[{i}].kind", listener.kind, ("clip", "attributes"))
            choose(f"{group}[{i}].language", listener.language, ("english", "german"))
            if listener.learning_rate and (group == "heldout" or listener.kind != "clip"):
                raise DixitError(f"config: {group}[{i}].learning_rate must be 0; only listeners of kind clip that are "
                                 "trained with can learn")
    _check_continual(config, choose)
    width, picks_width = config.speaker.audience_width, 2 * len(ATTRIBUTES)
    if config.audiences and not config.speaker.gated_units and width not in (0, picks_width):
        raise DixitError(f"config: speaker.audience_width must be {picks_width} with audiences, or 0 for a speaker "
                         "without an audience input")
    if width and not config.audiences and config.task != "caption":
        raise DixitError("config: speaker.audience_width needs audiences; list pairs of listeners under audiences")
    if config.task == "caption" and width not in (0, picks_width):
        raise DixitError(f"config: speaker.audience_width must be {picks_width} for captions that name requested "
                         "attributes, or 0")
    choose("policy.algorithm", config.policy.algorithm, ("reinforce", "self_critical", "rloo", "grpo", "ppo"))
    if config.speaker.lora_rank and config.game.kl_cost:
        raise DixitError("config: game.kl_cost needs speaker.lora_rank 0, for with LoRA the LLM itself moves")
    choose("speaker.dtype", config.speaker.dtype, ("float32", "bfloat16"))
    choose("speaker.compile", config.speaker.compile, ("auto", "yes", "no"))
    if config.speaker.shard and (config.speaker.lora_rank or config.speaker.compile == "yes"):
        raise DixitError("config: speaker.shard needs speaker.lora_rank 0 and speaker.compile auto or no, for a layer "
                         "of a sharded LLM is together only while it runs")
    choose("train.optimizer", config.train.optimizer, ("adamw", "sgd"))
    choose("train.schedule", config.train.schedule, ("cosine", "constant"))
    choose("train.mixed_precision", config.train.mixed_precision, ("no", "bf16"))
    choose("eval.checkpoint", config.eval.checkpoint, ("last", "best"))
    counts = {"train": "steps batch accumulate log_every eval_every save_every keep_last timeout log_max_mb",
              "policy": "samples epochs", "speaker": "prefix width heads max_tokens", "eval": "images batch"}
    for section, keys in counts.items():
        for key in keys.split():
            if getattr(getattr(config, section), key) < 1:
                raise DixitError(f"config: {section}.{key} must be at least 1")
    if config.task == "game" and not config.listeners:
        raise DixitError("config: listeners is empty; a game needs at least one listener")
    if config.task == "game" and config.game.candidates < 2:
        raise DixitError("config: game.candidates must be at least 2")
    if config.game.pools < 1:
        raise DixitError("config: game.pools must be at least 1")
    if config.policy.algorithm in ("rloo", "grpo") and config.policy.samples < 2:
        raise DixitError(f"config: policy.algorithm {config.policy.algorithm} needs policy.samples >= 2")
    if config.policy.algorithm == "ppo" and config.train.save_every % config.policy.epochs:
        raise DixitError("config: train.save_every must be a multiple of policy.epochs, so that a resumed run starts "
                         "with a fresh rollout")
    if config.policy.algorithm == "reinforce" and config.train.accumulate > 1:
        raise DixitError("config: policy.algorithm reinforce needs train.accumulate 1, for its baseline moves once a "
                         "step; rloo, grpo and self_critical accumulate")
    if config.train.batch % config.train.accumulate:
        raise DixitError(f"config: train.batch {config.train.batch} must be a multiple of train.accumulate "
                         f"{config.train.accumulate}")


def _check_continual(config: Config, choose: Any) -> None:
    rules, count = config.continual, len(config.audiences)
    choose("continual.order", rules.order, ("interleaved", "blocked"))
    choose("continual.remedy", rules.remedy,
           ("none", "replay", "ewc_nodes", "hebbian_gate", "hebbian_gate+sluggish"))
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
    for key, most in ("replay", 1.0), ("sluggish", 1.0), ("hebbian_rate", 0.25):
        if not 0 < getattr(rules, key) <= most:
            raise DixitError(f"config: continual.{key} must be above 0 and at most {most:g}")


def to_dict(config: Any) -> dict:
    """The resolved tree as plain values, ready for YAML or JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


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
