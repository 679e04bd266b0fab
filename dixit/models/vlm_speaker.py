"""A speaker that is a vision-language model: its own vision tokens -> adapter -> the frozen model -> caption.

The adapter adds to the vision tokens, at first nothing: before training the speaker says what the model itself answers
to the prompt, and that is the base speaker. Vision tokens of a data set are computed once (features.py). The model's
own forward pass puts them between the tokens of the prompt; when it is opened, that is compared with the same pass from
pixels.

Leaves out sampling and log-probabilities, which are any speaker's (speaker.py), and loading (vlm.py).

Shapes: B images, H x W pixels, P vision tokens, S captions, D LLM width.
"""

from __future__ import annotations

import inspect
import json
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPooling

from dixit.common import DixitError, first_line
from dixit.config import SpeakerConfig
from dixit.config_perception import Perception
from dixit.models.adapter import TokenAdapter
from dixit.models.clip import digest
from dixit.models.llm import max_positions
from dixit.models.speaker import Speaker, with_lora
from dixit.models.vlm import Vlm, load_vlm, seen, shared_vlm

IMAGES = 8  # that run through the image tower at once


class VlmEyes:
    """What a vision-language model sees of images: its vision tokens, as they stand between the tokens of a prompt.

    All images are seen at one size, for the prompt has as many tokens for an image as its size asks for.
    """

    named: None = None  # it has no classes to name things by, as some CLIPs have

    def __init__(self, vlm: Vlm, prompt: str, image_size: int):
        self.vlm, self.name, self.image_size = vlm, vlm.name, image_size
        self.one_tensor = False  # whether the model gives the vision tokens of several images as one tensor, or a list
        self.front, self.between = vlm.chat(prompt)
        grid = (torch.arange(3 * image_size**2).reshape(1, 3, image_size, image_size) * 37 % 256).byte()
        inputs = vlm.inputs(grid, self.front)
        self.prompt = {key: value for key, value in inputs.items() if not key.startswith("pixel")}
        self._check(grid, inputs)

    @cached_property
    def key(self) -> str:
        """A hash of all that the vision tokens depend on."""
        language, body = self.vlm.model.get_decoder(), self.vlm.decoder.body
        tower = nn.ModuleList(part for part in body.children() if part is not language)
        tower.append(nn.ParameterDict(dict(body.named_parameters(recurse=False))))  # such as the end of a row of tiles
        config = json.loads(self.vlm.model.config.to_json_string(use_diff=False), object_hook=lambda some: {
            key: value for key, value in some.items() if key not in ("_name_or_path", "transformers_version")})
        return digest(tower, config, self.vlm.processor.image_processor.to_json_string(), self.image_size)

    @torch.no_grad()
    def patches(self, images: UInt8[Tensor, "B 3 H W"], perception: Perception) -> Float[Tensor, "B P D"]:
        """The vision tokens of images seen through a perception, then scaled to `image_size` if they have another."""
        shown, size = seen(images, perception), (self.image_size, self.image_size)
        if shown.shape[2:] != size:
            scaled = F.interpolate(shown.float(), size, mode="bicubic", antialias=True)
            shown = scaled.round().clamp(0, 255).byte()
        take = self.vlm.model.get_image_features
        wanted, found = inspect.signature(take).parameters, []
        for some in shown.split(IMAGES):
            inputs = self.vlm.inputs(some, self.front)
            made = take(**{key: value for key, value in inputs.items() if key in wanted}, return_dict=True)
            self.one_tensor = isinstance(made.pooler_output, Tensor)
            found += list(made.pooler_output)
        return torch.stack(found).float()

    def inputs(self, tokens: Float[Tensor, "B P D"]) -> dict[str, Any]:
        """What the model takes for images of which the vision tokens are known, each with the prompt."""
        prompt = {key: value.repeat(len(tokens), *[1] * (value.dim() - 1)) for key, value in self.prompt.items()}
        parts: Any = tokens.to(self.vlm.model.dtype)
        parts = parts if self.one_tensor else list(parts)
        made = BaseModelOutputWithPooling(pooler_output=parts)
        return prompt | {"mm_encoder_outputs": {"image": made}}

    @torch.no_grad()
    def _check(self, image: UInt8[Tensor, "1 3 H W"], inputs: dict[str, Tensor]) -> None:
        """Raises DixitError if the model gives other hidden states after vision tokens than after pixels."""
        try:
            own = self.vlm.decoder.read(inputs)[1].float()
            mine = self.vlm.decoder.read(self.inputs(self.patches(image, "colour")))[1].float()
            tolerance = torch.finfo(self.vlm.model.dtype).eps ** 0.5
            fault = "" if float((mine - own).abs().max()) <= tolerance * float(own.abs().max()) else \
                "its hidden states differ from those after pixels"  # NaN differs
        except Exception as error:  # of any kind, by a model that is not made for it
            fault = first_line(error)
        if fault:
            raise DixitError(f"'{self.name}' ({self.vlm.model.config.model_type}) cannot be a speaker, for it does not "
                             f"run on given vision tokens: {fault}; choose another model")


class VlmSpeaker(Speaker):
    """A frozen vision-language model that answers a prompt, with a trainable `TokenAdapter` on its vision tokens.

    The prefix vectors of `Speaker` are here the changed vision tokens; `eyes` gives those to begin with.
    """

    def __init__(self, config: SpeakerConfig, image_size: int, seed: int = 0, device: str | torch.device = "cpu"):
        load = load_vlm if config.lora_rank else shared_vlm  # a model that changes is not shared
        vlm = load(config.llm, device, config.dtype)
        self.eyes = VlmEyes(vlm, config.prompt, image_size)
        asked, limit = self.eyes.prompt["input_ids"].shape[1], max_positions(vlm.model.config)
        if limit is not None and asked + config.max_tokens > limit:
            raise DixitError(f"'{config.llm}' has {limit} positions, but image and prompt need {asked} and the caption "
                             f"{config.max_tokens}; lower speaker.max_tokens or data.image_size")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            adapter = TokenAdapter(config, vlm.width)
            if config.lora_rank:
                adapter.lora = with_lora(vlm, config)
        self._assemble(config, vlm, vlm.decoder, vlm.head, adapter, device)

    def prefill(self, prefix: Float[Tensor, "B P D"]) -> tuple[Any, Float[Tensor, "B D"]]:
        """Run vision tokens and prompt, once per image; without vision tokens, the start token alone."""
        return self.eyes.vlm.decoder.read(self.eyes.inputs(prefix)) if prefix.shape[1] else super().prefill(prefix)

    def token_rows(self, texts: list[str]) -> list[list[int]]:
        """The tokens of each caption, behind what the chat template has in front of an answer."""
        return super().token_rows([self.eyes.between + text for text in texts])
