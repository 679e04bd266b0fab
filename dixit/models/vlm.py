"""Vision-language models of Hugging Face as captioners: what they answer to a prompt about an image is its caption.

Any model of `AutoModelForImageTextToText` whose decoder keeps a cache of keys and values: the image and the prompt run
once, captions after that cache. When it is opened, that is compared with the model's own forward pass.

Leaves out training (vlm_speaker.py), and models whose answers are not causal or whose prompt is not a prefix
(encoder-decoders, PaliGemma).

Shapes: S captions, B images, H x W pixels, t new tokens, p tokens in the cache, D LLM width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from dixit.common import DixitError, expand_home, file_states, first_line
from dixit.config_perception import Perception
from dixit.data.images import pixels
from dixit.models.decoder import Decoder, HfDecoder, Tree
from dixit.models.frozen import FrozenModel
from dixit.models.head import Head
from dixit.models.llm import refuse_missing
from dixit.models.perception import perceive

CHECKED = "a red circle"  # the caption on which a model is compared with its own forward pass


class VlmDecoder(HfDecoder):
    """The language model of a vision-language model, behind its image tower."""

    def read(self, inputs: dict[str, Any]) -> tuple[Any, Float[Tensor, "B D"]]:
        """Run images and prompts, as the processor gives them; the cache and the last hidden states."""
        cache, hidden = self._run(**inputs)
        # Of positions after an image, in models with a position for each of its axes; images of one size have one.
        shifts = getattr(self.body, "rope_deltas", None)
        cache.shift = None if shifts is None else shifts[:1]
        return cache, hidden[:, -1]

    def prefill(self, inputs: Float[Tensor, "B p D"]) -> tuple[Any, Float[Tensor, "B D"]]:
        self._set_shift(None)
        return super().prefill(inputs)

    def extend(self, cache: Any, tokens: Int[Tensor, "S t"], tree: Tree | None = None) -> Float[Tensor, "S t D"]:
        self._set_shift(getattr(cache, "shift", None))
        return super().extend(cache, tokens, tree)

    def _set_shift(self, shift: Tensor | None) -> None:
        """Left alone, the model would take that of the images it has read last."""
        if hasattr(self.body, "rope_deltas"):
            self.body.rope_deltas = shift


class Vlm(FrozenModel):
    """A vision-language model and its processor."""

    def __init__(self, name: str, model: Any, processor: Any, device: str | torch.device):
        super().__init__(model.eval().requires_grad_(False), processor.tokenizer)
        self.name, self.processor, self.device = name, processor, torch.device(device)
        self.model.to(device)
        self.decoder, self.head = VlmDecoder(self.model), Head(self.model)
        self.eos = self._end()

    def _asked(self, prompt: str) -> tuple[str, str]:
        """A prompt in the chat template, and what follows it where the model answers `CHECKED`."""
        turn = [{"type": "image"}, *([{"type": "text", "text": prompt}] if prompt else [])]
        asked: list[dict[str, Any]] = [{"role": "user", "content": turn}]
        answered = [*asked, {"role": "assistant", "content": [{"type": "text", "text": CHECKED}]}]
        try:
            front = self.processor.apply_chat_template(asked, add_generation_prompt=True)
            return front, self.processor.apply_chat_template(answered).removeprefix(front)
        except Exception as error:  # of any kind, by anyone's template
            raise DixitError(f"the chat template of '{self.name}' cannot take the prompt '{prompt}': "
                             f"{first_line(error)}; change the prompt or choose another model") from None

    def _end(self) -> int:
        """The token that ends a caption. A model may end a text with several; it is the one that the chat template has
        behind an answer, or else the tokenizer's."""
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        if getattr(self.processor, "chat_template", None):
            behind = self._asked("Describe it.")[1].partition(CHECKED)[2]
            for token in self.tokenizer(behind, add_special_tokens=False)["input_ids"]:
                if token in ends:
                    return int(token)
        return int(self.tokenizer.eos_token_id)

    def chat(self, prompt: str) -> tuple[str, str]:
        """The text in front of a caption, and what the model's chat template has between it and the caption, such as a
        space. Models without a template get the image and the prompt."""
        if not getattr(self.processor, "chat_template", None):
            return f"{getattr(self.processor, 'image_token', '')}{prompt}", " " if prompt else ""
        front, answer = self._asked(prompt)
        between = answer.partition(CHECKED)[0]
        return front, between if between.isspace() else ""

    def inputs(self, images: UInt8[Tensor, "B 3 H W"], front: str) -> dict[str, Tensor]:
        """What the model takes for images of one size, each with the text in front of its caption."""
        pictures = [[Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()))] for image in images]
        start = self.tokenizer.bos_token
        begun = {"add_special_tokens": False} if start and front.startswith(start) else {}  # by the chat template
        try:
            made = self.processor(text=[front] * len(pictures), images=pictures, return_tensors="pt", **begun)
        except Exception as error:  # of many kinds, such as an image token in the prompt
            raise DixitError(f"'{self.name}' cannot take its prompt with an image: {first_line(error)}; change the "
                             "prompt or choose another model") from None
        if not made["attention_mask"].all():
            raise DixitError(f"'{self.name}' gives images of one size prompts of different lengths; choose another "
                             "model")
        dtype = self.model.dtype
        return {key: value.to(self.device, dtype if value.is_floating_point() else None) for key, value in made.items()}

    def token_rows(self, texts: list[str]) -> list[list[int]]:
        """Tokens of texts, each ended by the end token."""
        return [[*ids, self.eos] for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]

    @torch.no_grad()
    def own_logp(self, inputs: dict[str, Tensor], tokens: Int[Tensor, "B t"]) -> Float[Tensor, "B t"]:
        """Log-probabilities of tokens after images and prompts, by the model's own forward pass."""
        length = inputs["input_ids"].shape[1]
        whole = {}
        for key, value in inputs.items():
            if key == "input_ids":
                value = torch.cat([value, tokens], 1)
            elif value.shape == inputs["input_ids"].shape:  # a mask, or the kind of each token
                value = torch.cat([value, torch.full_like(tokens, int(key == "attention_mask"), dtype=value.dtype)], 1)
            whole[key] = value
        logits = self.model(**whole, use_cache=False).logits[:, length - 1:-1]
        return logits.float().log_softmax(-1).gather(2, tokens[..., None]).squeeze(2)

    @torch.no_grad()
    def check(self) -> None:
        """Raises DixitError if captions after a cache get other log-probabilities than the model gives them."""
        front, between = self.chat("Describe it.")
        grid = torch.arange(2 * 3 * 64 * 64).reshape(2, 3, 64, 64) * 37 % 256
        inputs = self.inputs(grid.byte(), front)
        tokens = torch.tensor(self.token_rows([between + CHECKED]), device=self.device)
        cache, first = self.decoder.read(inputs)
        both = torch.arange(2, device=self.device)
        body = self.decoder.extend(self.decoder.select(cache, both, room=tokens.shape[1]),
                                   tokens[:, :-1].expand(2, -1))
        hidden = torch.cat([first[:, None], body], 1)
        mine = self.head.token_logp(hidden.flatten(0, 1), tokens.expand(2, -1).flatten()).unflatten(0, (2, -1))
        own = self.own_logp(inputs, tokens.expand(2, -1))
        tolerance = torch.finfo(self.model.dtype).eps ** 0.5
        if not float((mine - own).abs().max()) <= tolerance * max(float(own.abs().max()), 1.0):  # NaN differs
            raise DixitError(f"'{self.name}' ({self.model.config.model_type}) gives captions other log-probabilities "
                             "after a cache than in one pass; choose another model")


def seen(images: UInt8[Tensor, "B 3 H W"], perception: Perception) -> UInt8[Tensor, "B 3 H W"]:
    """Images through a perception, as whole numbers again, which processors take."""
    return (perceive(images.float() / 255, perception) * 255).round().clamp(0, 255).byte()


class VlmCaptioner:
    """A vision-language model that answers a prompt about the images of a dataset, seen through a perception."""

    def __init__(self, vlm: Vlm, dataset: Dataset, perception: Perception, prompt: str):
        self.vlm, self.dataset, self.perception = vlm, dataset, perception
        self.decoder: Decoder = vlm.decoder
        self.head, self.device = vlm.head, vlm.device
        self.front, self.between = vlm.chat(prompt)

    def prefill(self, images: Sequence[int]) -> tuple[Any, Float[Tensor, "B D"]]:
        return self.vlm.decoder.read(self.vlm.inputs(seen(pixels(self.dataset, images), self.perception), self.front))

    def token_rows(self, texts: list[str]) -> list[list[int]]:
        return self.vlm.token_rows([self.between + text for text in texts])


_opened: WeakValueDictionary[tuple[Any, ...], Vlm] = WeakValueDictionary()  # by name, settings and state of files


def shared_vlm(name: str, device: str | torch.device = "cpu", dtype: str = "auto") -> Vlm:
    """`load_vlm` of a model that never changes; a process holds each once in a precision while it is in use."""
    folder = expand_home(name)
    files = file_states(folder)
    if dtype == "auto":
        dtype = named_precision(str(folder) if files else name)
    place = (str(folder.resolve()) if files else name, str(device), dtype, *files)
    return _opened.get(place) or _opened.setdefault(place, load_vlm(name, device, dtype))


def named_precision(source: str) -> str:
    """The precision that a model's config names; `auto` if it names none or cannot be read, of which load_vlm tells."""
    try:
        named = AutoConfig.from_pretrained(source, trust_remote_code=False).dtype
    except Exception:
        named = None
    return str(named).removeprefix("torch.") if isinstance(named, torch.dtype) else "auto"


def load_vlm(name: str, device: str | torch.device = "cpu", dtype: str = "auto") -> Vlm:
    """A frozen vision-language model from a folder or by its Hugging Face name; `auto` is the precision of its weights.

    Raises DixitError where it cannot be loaded or used. Only safetensors are read, and remote code is never run.
    """
    folder = expand_home(name)
    source = str(folder) if folder.is_dir() else name
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        if config.is_encoder_decoder:
            raise DixitError(f"'{name}' is an encoder-decoder ({config.model_type}); choose a model with a decoder "
                             "only")
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
        if getattr(processor, "tokenizer", None) is None or processor.tokenizer.eos_token_id is None:
            raise DixitError(f"'{name}' has no processor for images and text, or its tokenizer no end token; its files "
                             "are missing or it is no vision-language model")
        opened: Any = AutoModelForImageTextToText.from_pretrained(
            source, config=config, dtype=dtype, trust_remote_code=False, output_loading_info=True,
            use_safetensors=True)
        model, loaded = opened
        refuse_missing(name, loaded)
        vlm = Vlm(name, model, processor, device)
        vlm.check()
    except DixitError:
        raise
    except Exception as error:  # many kinds, each about bad input
        raise DixitError(f"cannot use the vision-language model '{name}': {first_line(error)}") from None
    return vlm
