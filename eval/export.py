"""Export a finished run to share it: `dixit export RUN FOLDER [--push NAME]`.

Writes the trained weights (adapter, and LoRA if there is any) and those of the base speaker in safetensors, the config,
a model card and two example images; no checkpoint, no data, no absolute path. `load_run` and the other commands open
the folder like a run. With --push it is also uploaded to the Hugging Face hub as NAME (USER/MODEL), with the token of
`hf auth login` or HF_TOKEN; if that fails, nothing is written.
"""

from __future__ import annotations

from dixit.common import run_main

from . import commands

if __name__ == "__main__":  # before the imports below, so that --help is quick
    run_main(commands.export)

import shutil
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from safetensors import SafetensorError, safe_open

from dixit.common import DixitError, atomic_write_text, expand_home, first_line, read_json, scratch_dir, sha256
from dixit.config import Config, DataConfig, load_config, to_dict
from dixit.data.assets import ASSETS
from dixit.data.images import load, pixels
from dixit.models.towers import tower_of
from dixit.play.explain import caption_images
from dixit.training.checkpoints import (
    BASE,
    FILES,
    base_weights,
    checkpoints,
    step_of,
    trained_weights,
    verify_checkpoint,
)
from dixit.training.runs import load_run, run_config

from .model_card import Example, command_words, model_card, without_paths


def export(run: Path, folder: Path, repository: str = "") -> str:
    """Write a run's export to `folder`, whole or not at all, and push it if a repository is named; returns its address
    there. Raises DixitError if the run is not finished, the folder is not empty, or the push fails."""
    config = _finished(run)
    folder = expand_home(folder).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DixitError(f"{folder} is not an empty folder; choose another one")
    scratch = None
    try:
        scratch = scratch_dir(folder.parent)
        _fill(scratch, run, config, folder.name, repository)
        scratch.chmod(0o755)  # mkdtemp makes it for the owner only
        address = push(scratch, repository) if repository else ""
        scratch.rename(folder)
    except OSError as error:
        raise DixitError(f"cannot write {folder}: {error.strerror or error}; free some space or choose another folder, "
                         "then run the same command again") from None
    finally:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)
    return address


def _finished(run: Path) -> Config:
    """The config of a finished run of a speaker."""
    config = run_config(run)
    if config.task == "clip":
        raise DixitError(f"{run} trained a CLIP; only runs of the tasks words, caption and game hold a speaker")
    found = checkpoints(run)
    done = step_of(found[-1]) if found else 0
    if not (run / "train.json").is_file() or done < config.train.steps:
        raise DixitError(f"{run} is not a finished run: it holds {done} of {config.train.steps} steps, or no "
                         "train.json; train it to its end first, with the command that began it")
    return config


def _fill(place: Path, run: Path, config: Config, name: str, repository: str) -> None:
    """Write all files of the export into a scratch folder."""
    weights = trained_weights(run, config.eval.checkpoint)
    verify_checkpoint(weights.parent)
    _copy_weights(weights, place / FILES[0])
    if config.speaker.init:
        _copy_weights(base_weights(run, config.speaker.init), place / BASE)
    tree = _without_paths(to_dict(config) | {"out": ""})
    atomic_write_text(place / "config.yaml", yaml.safe_dump(tree, sort_keys=False))
    exported = sha256(weights)
    results, transferred = (_results(run, name, exported) for name in ("results", "transfer"))
    examples, about = _examples(place, run, config, results)
    card = model_card(load_config(place / "config.yaml"), name, repository, read_json(run / "train.json"), results,
                      transferred, examples, about, _local_parts(config))
    atomic_write_text(place / "README.md", card)


def _copy_weights(source: Path, target: Path) -> None:
    try:
        with safe_open(source, "pt"):  # its header and its length are sound
            pass
    except (SafetensorError, OSError) as error:
        raise DixitError(f"{source} is damaged ({first_line(error)}); train the run again") from None
    shutil.copyfile(source, target)


def _without_paths(value: Any) -> Any:
    """A config's tree with the last part of each absolute path for the path."""
    if isinstance(value, dict):
        return {key: _without_paths(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_paths(part) for part in value]
    return without_paths(value) if isinstance(value, str) else value


def _local_parts(config: Config) -> dict[str, str]:
    """Parts of the speaker that are files here, which nobody else has: config key -> name."""
    parts = {"speaker.llm": config.speaker.llm}
    if config.speaker.kind == "llm":
        parts |= {"clip.name": config.clip.name, "clip.pretrained": config.clip.pretrained}
    known = {asset.name for asset in ASSETS}
    return {key: Path(name).name for key, name in parts.items()
            if name and name not in known and not tower_of(name) and expand_home(name).exists()}


def _results(run: Path, name: str, exported: str) -> dict[str, Any] | None:
    """RUN/results.json or RUN/transfer.json; None if there is none, or, with a warning, if it is about other weights
    than those that are exported, whose hash is given."""
    path = run / f"{name}.json"
    if not path.is_file():
        return None
    found = read_json(path)
    if not isinstance(found, dict) or not {"command", "commit", "config_hash", "figures"} <= set(found):
        raise DixitError(f"{path} is damaged; delete it, or make it again")
    if found.get("weights") != exported:
        print(f"warning: {path} is not about the weights that are exported; the card leaves it out. To have it there, "
              "make it again", file=sys.stderr)
        return None
    return found


def _examples(place: Path, run: Path, config: Config, results: dict[str, Any] | None) -> tuple[list[Example], str]:
    """Two example images, written into the folder, with their captions; and where they are from.

    They are the first image and the middle one of those that were evaluated, else of the split that would be. If the
    data set is not here any more, they are drawn scenes.
    """
    split, path = config.eval.split, run / "results_captions.json"
    if results:
        given = [word for word in command_words(results["command"]) if word.startswith("eval.") and "=" in word]
        split = run_config(run, given).eval.split
    said = {name: own["texts"] for name, own in read_json(path).items() if name in ("base", "trained")} \
        if results and path.is_file() else {}
    about = f"The first and the middle image of the {split} split, and what the speakers say of them."
    try:
        dataset = load(config.data, split)
    except DixitError as error:
        print(f"warning: {error}; the example images are drawn scenes", file=sys.stderr)
        dataset, said = load(DataConfig(image_size=config.data.image_size, test=2), "test"), {}
        about = "Drawn scenes, because the images of the data set were not at hand, and what the speakers say of them."
    if said and len(said["trained"]) > len(dataset):  # images were taken away since
        said = {}
    count = len(said["trained"]) if said else min(len(dataset), config.eval.images)
    images = pixels(dataset, indices := sorted({0, count // 2}))
    if said:
        captions = {name: [texts[i] for i in indices] for name, texts in said.items()}
    else:
        captions = {name: [rows[0][0] for rows in spoken] for name, spoken in
                    caption_images(load_run(run), images).items()}
    examples = []
    for i, image in enumerate(images):
        file = f"example_{i + 1}.png"
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / file)
        examples.append(Example(file, {name: texts[i] for name, texts in captions.items()}))
    return examples, about


def push(folder: Path, repository: str) -> str:
    """Upload a folder to the hub as a model, in one commit; returns its address. Raises DixitError if that fails."""
    from huggingface_hub import HfApi

    try:
        made = HfApi().create_repo(repository, exist_ok=True)
        HfApi().upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Export of dixit")
    except Exception as error:  # the hub's client, its connections and its storage raise kinds of their own
        raise DixitError(f"cannot push to {repository}: {first_line(error)}; nothing was written. Log in with "
                         "hf auth login or set HF_TOKEN, then run the same command again") from None
    return str(made)


@torch.no_grad()
def main(arguments: Namespace) -> None:
    address = export(arguments.run, arguments.folder, arguments.push)
    print(f"written to {arguments.folder}" + (f"\npushed to {address}" if address else ""))
