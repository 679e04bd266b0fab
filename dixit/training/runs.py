"""Opening runs: the speaker and the listeners that a config describes, and a trained run with its base speaker.

Leaves out training (loop.py) and evaluation (eval/).

Shapes: B images, P patches, Dv patch width.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor, nn

from dixit.common import DixitError
from dixit.config import Config, ListenerConfig, load_config
from dixit.data.images import load, open_image
from dixit.models.clip import Clip, load_clip
from dixit.models.features import Eyes, image_embeddings, patch_features
from dixit.models.listeners import AttributeListener, ClipListener, Listener, known_classes
from dixit.models.literal import LiteralListener, SpeakerCaptioner
from dixit.models.speaker import Speaker
from dixit.models.vlm import Vlm, VlmCaptioner, shared_vlm
from dixit.models.vlm_speaker import VlmSpeaker
from dixit.training.checkpoints import base_weights, load_weights, trained_weights


def open_speaker(config: Config, device: torch.device) -> tuple[Eyes, Speaker]:
    """The speaker, and what it sees with. If a run `speaker.init` is named, it starts from its weights, or from the
    copy of them that the config's own run has kept."""
    eyes: Eyes
    speaker: Speaker
    if config.speaker.kind == "vlm":
        speaker = VlmSpeaker(config.speaker, config.data.image_size, config.seed, device)
        eyes = speaker.eyes
    else:
        eyes = load_clip(config.clip.name, config.clip.pretrained, device)
        blank = eyes.patches(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "colour")
        speaker = Speaker(config.speaker, blank.shape[1], blank.shape[2], config.seed, device, eyes.row_width)
    if config.speaker.init:
        path = base_weights(config.folder, config.speaker.init)
        new = ("audience.", "attributes.") if config.task == "caption" else ()
        load_weights(speaker.trained, path, optional=("gated_units.", *new))
    if config.speaker.audience_width and not config.speaker.gated_units:
        # Captions teach the adapter to name requested attributes; the game trains the map from audience to attributes.
        game = config.task == "game"
        speaker.trained.requires_grad_(not game)
        speaker.trained.audience.requires_grad_(game)
    return eyes, speaker


def patch_batch(store: np.ndarray, index: np.ndarray, device: torch.device) -> Float[Tensor, "B P Dv"]:
    """Cached patch features of some images, ready for the adapter."""
    return torch.from_numpy(np.asarray(store[index], dtype=np.float32)).to(device)


@dataclass
class SpeakerAndImages:
    """What a training of the speaker starts from: the speaker, and both splits with their cached patch features."""

    eyes: Eyes
    speaker: Speaker
    data: Dataset
    validation: Dataset
    store: np.ndarray
    validation_store: np.ndarray


def speaker_and_images(config: Config, device: torch.device) -> SpeakerAndImages:
    """Open the models first, so that what is wrong with them is told before data and features are made."""
    eyes, speaker = open_speaker(config, device)
    data, validation = load(config.data, "train", training=True), load(config.data, "validation")
    return SpeakerAndImages(eyes, speaker, data, validation, patch_features(eyes, data, "colour"),
                            patch_features(eyes, validation, "colour"))


@dataclass
class LoadedRun:
    """A trained run with its speaker, and what it sees with. `base` is the adapter that training started from, if it
    was one of a speaker that could speak; `weights` the file that the trained one was read from."""

    folder: Path
    config: Config
    eyes: Eyes
    speaker: Speaker
    base: nn.Module | None
    weights: Path

    def caption(self, path: str | Path) -> str:
        """The trained speaker's greedy caption of an image file. Raises DixitError if it cannot be read."""
        image = np.array(open_image(Path(path), self.config.data.image_size))
        patches = self.eyes.patches(torch.from_numpy(image).permute(2, 0, 1)[None], "colour")
        return self.speaker.caption(patches)[0][0]


def run_config(folder: Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """The config of a run's folder, which may have been moved. Raises DixitError if it is no run."""
    if not (folder / "config.yaml").is_file():
        raise DixitError(f"{folder} is not a run: it holds no config.yaml; train one with dixit train CONFIG")
    return replace(load_config(folder / "config.yaml", overrides), out=str(folder))


def load_run(folder: str | Path, overrides: list[str] | tuple[str, ...] = (),
             device: str | torch.device = "cpu") -> LoadedRun:
    """Open a run's folder, or one that `dixit export` wrote. Raises DixitError if it is no run, its weights are missing
    or damaged, or a model that it is made of is not here."""
    folder = Path(folder)
    config = run_config(folder, overrides)
    eyes, speaker = open_speaker(config, torch.device(device))
    # With LoRA the LLM itself changes, so the adapter it started from is no base speaker any more. The new adapter of a
    # vision-language model is one, for it changes nothing.
    has_base = (config.speaker.init or config.speaker.kind == "vlm") and not config.speaker.lora_rank
    base = copy.deepcopy(speaker.trained).requires_grad_(False) if has_base else None
    weights = trained_weights(folder, config.eval.checkpoint)
    load_weights(speaker.trained, weights)
    speaker.trained.eval()
    return LoadedRun(folder, config, eyes, speaker, base, weights)


def open_captioner(folder: str | Path, device: str | torch.device = "cpu") -> LoadedRun:
    """The run of a speaker that is to listen. Raises DixitError if it has none, besides the errors of `load_run`."""
    config = run_config(Path(folder))
    if config.task == "clip":
        raise DixitError(f"{folder} is a run of the task clip and has no speaker; name a run of the task caption or "
                         "game")
    return load_run(folder, ["speaker.shard=false"], device)


Model = Clip | LoadedRun | Vlm | None  # of a listener; None if it needs none


def open_models(configs: tuple[ListenerConfig, ...], device: str | torch.device = "cpu") -> list[Model]:
    """The model of each listener. CLIPs and vision-language models are shared while they are in use, runs by these
    listeners. Raises DixitError, with the listener's name, if one cannot be opened."""
    runs: dict[str, LoadedRun] = {}

    def open_one(c: ListenerConfig) -> Model:
        if c.kind == "captioner":
            folder = os.path.realpath(c.model)
            if folder not in runs:
                runs[folder] = open_captioner(c.model, device)
            return runs[folder]
        if c.kind == "vlm":
            return shared_vlm(c.model, device)
        return load_clip(c.clip, c.pretrained, device) if c.kind == "clip" else None

    opened = []
    for place, c in enumerate(configs, 1):
        try:
            opened.append(open_one(c))
        except DixitError as error:
            raise DixitError(f"listener {place} ({c.name}): {error}") from None
    return opened


def make_listeners(configs: tuple[ListenerConfig, ...], dataset: Dataset, device: str | torch.device = "cpu",
                   models: list[Model] | None = None) -> list[Listener]:
    """Listeners that see the images of `dataset`. `models`: what `open_models` gave for them, if it was asked before.
    """
    made: list[Listener] = []
    for c, model in zip(configs, models or open_models(configs, device), strict=True):
        if isinstance(model, Clip):
            made.append(ClipListener(model, image_embeddings(
                model, dataset, c.perception, known=known_classes(model, c)), c))
        elif isinstance(model, LoadedRun):
            patches = patch_features(model.eyes, dataset, c.perception)
            made.append(LiteralListener(SpeakerCaptioner(model.speaker, patches), c))
        elif isinstance(model, Vlm):
            made.append(LiteralListener(VlmCaptioner(model, dataset, c.perception, c.prompt), c))
        else:
            made.append(AttributeListener(dataset, c, device))
    return made
