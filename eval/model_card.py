"""The model card of an exported run: a README.md with the front matter that the Hugging Face hub reads.

It says what the run's own files say: config, train.json, results.json, transfer.json. Licences of parts are those that
dixit/data/assets.py states. Leaves out what is written beside it (export.py).
"""

from __future__ import annotations

import html
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import yaml

from dixit import __version__
from dixit.config import ClipConfig, Config, DataConfig, ListenerConfig
from dixit.data.assets import ASSETS
from dixit.models.towers import build_command, tower_of
from dixit.play.explain import describe_listener

from . import evaluate, transfer

LICENCES = {asset.name: asset.licence for asset in ASSETS}
PERMISSIVE = ("Apache-2.0", "MIT", "public domain", "WordNet licence (BSD-like)")
HUB_NAMES = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}  # of assets that can be a speaker's LLM
TASKS = {"words": "words of images (first warm start)",
         "caption": "captions of images (second warm start)",
         "game": "the reference game, rewarded by what listeners understand"}
SCENES = "It was trained on drawn scenes of one to three objects, and was taught no names of other objects."


@dataclass(frozen=True)
class Example:
    """An image file beside the card, and speaker -> what it says of the image."""

    file: str
    captions: dict[str, str]


def model_card(config: Config, folder: str, repository: str, training: dict[str, Any], results: dict[str, Any] | None,
               zero_shot: dict[str, Any] | None, examples: list[Example], about_examples: str,
               local: dict[str, str]) -> str:
    """The card as Markdown. `config` has no absolute paths; `local` holds its parts that are files of the author's:
    key -> name. `folder` is what the exported folder is called, `repository` where it is pushed to, if anywhere."""
    parts = _parts(config)
    sections = {
        "Examples": _examples(examples, about_examples),
        "Use": _use(config, folder, repository, examples[0].file, local),
        "Training": _training(config, training),
        "Listeners": _listeners(config),
        "Results": _results(results),
        "Zero-shot": _zero_shot(zero_shot),
        "Limits": _limits(config, training, results),
        "Licences of the parts": _licences(parts)}
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items() if text)
    return f"---\n{_front_matter(config, parts, local)}---\n\n# {plain(config.name)}\n\n{_summary(config)}\n\n{body}\n"


def plain(text: str) -> str:
    """A text on one line that Markdown and HTML show as it is."""
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def code(text: str) -> str:
    """A text as code within a line."""
    return "`" + " ".join(text.replace("`", "'").split()) + "`"


def without_paths(text: str) -> str:
    """A word of a command line or a config, with the last part of each absolute path in it for the path.

    data.path=/home/me/photos becomes data.path=photos, and folder:/home/me/photos becomes folder:photos.
    """
    prefix, value = re.fullmatch(r"((?:[\w.-]+[=:])*)(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    if value.startswith(("/", "~")):
        return prefix + Path(value).name
    return prefix + re.sub(r"(?<![\w./:~-])[/~][^\s,\]}'\"]*", lambda found: Path(found[0]).name, value)


def command_without_paths(command: str) -> str:
    """A command line without absolute paths."""
    return shlex.join(without_paths(word) for word in command_words(command))


def command_words(command: str) -> list[str]:
    """The words of a command line."""
    try:
        return shlex.split(command)
    except ValueError:  # a quote without its other one
        return command.split()


# ---- what the run is made of -----------------------------------------------------------------------------

def hub_name(llm: str) -> str:
    """The name on the hub of an LLM, "" if it has none that is known."""
    return HUB_NAMES.get(llm, llm if re.fullmatch(r"[\w.-]+/[\w.-]+", llm) else "")


def clip_hub_name(clip: ClipConfig) -> str:
    """The name on the hub of a CLIP's weights, "" for one that was built here or is not known."""
    if clip.name.startswith("hf-hub:"):
        return clip.name.removeprefix("hf-hub:")
    return (open_clip.get_pretrained_cfg(clip.name.replace("/", "-"), clip.pretrained).get("hf_hub") or "").rstrip("/")


def is_built_here(clip: ClipConfig | ListenerConfig) -> bool:
    """Whether a CLIP is one that `dixit train clip` builds."""
    name = clip.name if isinstance(clip, ClipConfig) else clip.clip
    return bool(tower_of(name)) and not clip.pretrained


def _parts(config: Config) -> dict[str, tuple[list[str], str]]:
    """Part -> (what it is used for, its licence)."""
    parts: dict[str, tuple[list[str], str]] = {}

    def add(name: str, use: str, licence: str | None = None) -> None:
        uses, _ = parts.setdefault(name, ([], licence or LICENCES.get(name, "not known to dixit: see its own page")))
        if use not in uses:
            uses.append(use)

    def add_clip(clip: ClipConfig | ListenerConfig, use: str) -> None:
        name = clip.name if isinstance(clip, ClipConfig) else clip.clip
        if not is_built_here(clip):
            add(" ".join(filter(None, (name, clip.pretrained))), use)
            return
        if tower_of(name) != "cnn":  # which is trained from scratch
            add(tower_of(name), use)
        add("minilm", use)

    if config.speaker.kind == "vlm":
        add(config.speaker.llm, "vision-language model of the speaker")
    else:
        add(config.speaker.llm, "language model of the speaker")
        add_clip(config.clip, "CLIP that the speaker sees with")
    for listener in (*config.listeners, *config.heldout):
        if listener.kind == "clip":
            add_clip(listener, "CLIPs of the listeners")
        if listener.kind in ("captioner", "vlm"):
            add(without_paths(listener.model), "listeners that are captioners")
        if listener.knows.eyes or listener.knows.names or listener.knows.words == "basic":
            add("wordnet", "what the listeners know")
    for name in config.data.name.split("+"):
        if name == "scenes":
            add("scenes", "images", "drawn by dixit, Apache-2.0")
        else:
            add(config.data.path if name in ("folder", "hub") else name, "images")
    return parts


def _front_matter(config: Config, parts: dict[str, tuple[list[str], str]], local: dict[str, str]) -> str:
    free = all(licence in PERMISSIVE or licence.endswith("Apache-2.0") for _, licence in parts.values())
    clip = clip_hub_name(config.clip) if config.speaker.kind == "llm" else ""
    base = [name for key, name in (("speaker.llm", hub_name(config.speaker.llm)), ("clip.name", clip))
            if name and key not in local]
    matter: dict[str, Any] = {"license": "apache-2.0"} if free else {
        "license": "other", "license_name": "licences-of-the-parts"}
    matter |= {"library_name": "dixit", "pipeline_tag": "image-to-text",
               "tags": ["dixit", "image-captioning", "referential-game"]}
    if base:
        matter |= {"base_model": base, "base_model_relation": "adapter"}
    if config.data.name == "hub" and "/" in config.data.path:
        matter["datasets"] = [config.data.path]
    return yaml.safe_dump(matter, sort_keys=False, allow_unicode=True)


def _summary(config: Config) -> str:
    place = "on the vision tokens of a frozen vision-language model" if config.speaker.kind == "vlm" else \
        "between a frozen CLIP image tower and a frozen language model"
    what = f"A speaker of dixit {__version__}: a trained adapter{' with LoRA' if config.speaker.lora_rank else ''} " \
           f"{place}"
    if config.task != "game":
        return f"{what}. It was trained on captions, and not by listeners."
    return (f"{what}. It was trained to caption images so that listeners of positive weight find the image among "
            f"{config.game.candidates} candidates, and listeners of negative weight do not.")


def _data(data: DataConfig) -> str:
    names = {"scenes": "drawn scenes", "folder": f"the folder of images {code(data.path)}",
             "hub": f"the data set {code(data.path)}"}
    listed = " and ".join(names.get(name, code(name)) for name in data.name.split("+"))
    return f"{listed}, {f'at most {data.train}' if data.train else 'all'} training images of each set, " \
           f"{data.image_size} pixels"


# ---- the sections ----------------------------------------------------------------------------------------

def _examples(examples: list[Example], about: str) -> str:
    blocks = []
    for example in examples:
        said = "\n".join(f"| {name} | {plain(text) or '(nothing)'} |" for name, text in example.captions.items())
        blocks.append(f"![Example image]({example.file})\n\n| speaker | caption |\n|---|---|\n{said}")
    return f"{about}\n\n" + "\n\n".join(blocks)


def _use(config: Config, folder: str, repository: str, image: str, local: dict[str, str]) -> str:
    built = config.speaker.kind == "llm" and is_built_here(config.clip) and "clip.name" not in local
    commands = ["dixit assets"] if built else [f"dixit assets {config.speaker.llm}"] * (config.speaker.llm in LICENCES)
    commands += [build_command(config.clip.name)] * built
    commands += [shlex.join(["hf", "download", repository, "--local-dir", folder])] * bool(repository)
    text = f"Install dixit {__version__} (`pip install .` in its source)"
    if commands:
        text += ", then get its parts:\n\n```\n" + "\n".join(commands) + "\n```\n"
    else:
        text += ".\n"
    overrides = [f"{key}=PATH" for key in local]
    words = [json.dumps(folder, ensure_ascii=False), *([json.dumps(overrides)] if overrides else [])]
    file = json.dumps(f"{folder}/{image}", ensure_ascii=False)
    text += f"""
```python
from dixit.training.runs import load_run
run = load_run({", ".join(words)})
print(run.caption({file}))
```
"""
    if overrides:
        text += "\nNot in this folder, and not to be had by name: " + ", ".join(
            f"{code(local[key.partition('=')[0]])} ({code(key)})" for key in overrides) + ". Ask the author for them.\n"
    if built and (tower_of(config.clip.name) == "cnn" or config.clip.name.endswith("-pictures")):
        text += ("\nThe speaker sees with trained parts of that CLIP too. One that is built on another machine may "
                 "differ from the author's, and captions with it.\n")
    listening = {c.clip for c in (*config.listeners, *config.heldout) if c.kind == "clip" and is_built_here(c)}
    further = sorted(listening - {config.clip.name if built else ""})
    if further:
        text += ("\n`dixit evaluate`, `transfer`, `demo` and `play` open this folder as well. They need the listeners' "
                 "CLIPs, too:\n\n```\n" + "\n".join(map(build_command, further)) + "\n```\n")
    elif config.listeners:
        text += "\n`dixit evaluate`, `transfer`, `demo` and `play` open this folder as well.\n"
    return text.strip()


def _training(config: Config, training: dict[str, Any]) -> str:
    speaker, settings = config.speaker, config.train
    lora = f", LoRA of rank {speaker.lora_rank}" if speaker.lora_rank else ""
    clip = " ".join(filter(None, (config.clip.name, config.clip.pretrained)))
    lines = [f"Task: {TASKS[config.task]}", f"Data: {_data(config.data)}"]
    if speaker.kind == "vlm":
        lines += [f"Vision-language model: {code(speaker.llm)}, {speaker.dtype}, frozen{lora}",
                  f"Prompt: {code(speaker.prompt)}"]
    else:
        lines += [f"Language model: {code(speaker.llm)}, {speaker.dtype}, frozen{lora}", f"CLIP: {code(clip)}, frozen"]
    if speaker.init:
        lines.append(f"Started from: {code(speaker.init)} (`base.safetensors`)")
    if config.task == "game":
        lines.append(f"Reward: `{config.game.reward}`, {config.game.candidates} candidates "
                     f"({config.game.distractors} distractors), `{config.policy.algorithm}` with "
                     f"{config.policy.samples} captions per image")
    lines += [f"Steps: {settings.steps} of {settings.batch} images; seed {config.seed}",
              f"Command: {code(command_without_paths(training['command']))}", f"Commit: {code(training['commit'])}",
              "Every setting is in `config.yaml`"]
    return "\n".join(f"- {line}" for line in lines)


def _listeners(config: Config) -> str:
    rows = []
    for role, group in (("training", config.listeners), ("held-out", config.heldout)):
        for c in group:
            rows.append(f"| {plain(c.name)} | {role} | {c.weight:+g} | {plain(describe_listener(c))} |")
    if not rows:
        return ""
    return ("A listener of positive weight should find the image, one of negative weight should not. Held-out "
            "listeners took no part in training.\n\n| listener | role | weight | what it knows |\n|---|---|---|---|\n"
            + "\n".join(rows))


def _how(found: dict[str, Any]) -> str:
    return (f"Command {code(command_without_paths(found['command']))}, config {code(found['config_hash'])}, commit "
            f"{code(found['commit'])}.")


def _results(results: dict[str, Any] | None) -> str:
    if results is None:
        return "This speaker has not been evaluated."
    images = results["figures"]["trained"]["length"]["n"]
    return (f"Mean ± standard error over {images} images. The gap is the mean accuracy of listeners of positive weight "
            "minus that of listeners of negative weight. *heldout* are listeners that took no part in training, *base* "
            "is the speaker that it started from, *ground truth* the images' own captions, *oracle* captions written "
            "to name only what serves these listeners.\n\n"
            f"{html.escape(evaluate.table(results['figures']), quote=False)}\n\n{_how(results)}")


def _zero_shot(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    data = {without_paths(name): result for name, result in found["figures"]["data"].items()}
    seeds = [str(run["seed"]) for run in found["figures"]["runs"]]
    over = f", means of {len(seeds)} runs (seeds {', '.join(seeds)}), of which this is one" if len(seeds) > 1 else ""
    return (f"On images that it was not trained on, at 10 candidates: mean [95 % interval over images]{over}.\n\n"
            f"{html.escape(transfer.table(data), quote=False)}\n\n{_how(found)}")


def _limits(config: Config, training: dict[str, Any], results: dict[str, Any] | None) -> str:
    lines = [SCENES if config.data.name == "scenes" else f"It was trained on these images only: {_data(config.data)}."]
    if config.task == "game":
        lines.append("Its captions serve these listeners, which are models with limits made for the game. No figure "
                     "here says how people understand them.")
        if not config.heldout:
            lines.append("It was not evaluated with listeners other than those that it was trained with.")
    if config.audiences:
        lines.append("It takes a description of its audience; captions made as above are given none.")
    if results:
        lines.append(f"The table is of one run (seed {config.seed}): its errors are over images, not over seeds.")
    if training["commit"].endswith("+"):
        lines.append("It was trained with code that had uncommitted changes.")
    return "\n".join(f"- {line}" for line in lines)


def _licences(parts: dict[str, tuple[list[str], str]]) -> str:
    rows = "\n".join(f"| {plain(name)} | {', '.join(uses)} | {plain(licence)} |"
                     for name, (uses, licence) in parts.items())
    return ("None of these parts is in this folder, except for the example images. dixit itself is under "
            f"Apache-2.0.\n\n| part | use | licence |\n|---|---|---|\n{rows}")
