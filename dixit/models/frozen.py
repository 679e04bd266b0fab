"""The frozen LLM of a speaker, ready to run. The speakers of a process share one: that which is trained in a game, and
listeners that are captioners.

Leaves out loading (llm.py), the forward pass (decoder.py), the head (head.py) and vision-language models (vlm.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch

from dixit.common import DixitError, file_states
from dixit.config import SpeakerConfig
from dixit.models.decoder import POSITIONS, HfDecoder, LlamaDecoder
from dixit.models.head import Head
from dixit.models.llm import check_positions, load_llm
from dixit.models.self_check import check_speaker, refused_if_it_fails


class FrozenModel:
    """A model that says texts, its tokenizer, start and end tokens, and the width of its embeddings."""

    def __init__(self, model: Any, tokenizer: Any):
        self.model, self.tokenizer = model, tokenizer
        self.eos = int(tokenizer.eos_token_id)
        self.start = self.eos if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id)
        self.width = model.get_input_embeddings()(torch.tensor([self.start])).shape[1]


class FrozenLlm(FrozenModel):
    """An LLM; `scale` is the standard deviation of its embeddings."""

    def __init__(self, config: SpeakerConfig, positions: int):
        super().__init__(*load_llm(config.llm, config.dtype, positions))
        embed = self.model.get_input_embeddings()
        embedded = embed(torch.arange(len(embed.weight)))  # by the layer, which may scale its weight
        self.scale = float(embedded.float().std())

    def runner(self, config: SpeakerConfig, positions: int, device: str | torch.device,
               sharded: bool) -> tuple[HfDecoder | LlamaDecoder, Head]:
        """Move the model to the device, and make and check what runs it."""
        with refused_if_it_fails(self.model, config.llm):
            self.model.to(device)
            fits = LlamaDecoder.fits(self.model) and not sharded
            if config.compile == "yes" and not fits:
                raise DixitError(f"speaker.compile yes is for LLMs of the Llama family without LoRA; '{config.llm}' "
                                 f"with lora_rank {config.lora_rank} is none: use auto")
            decoder = LlamaDecoder(self.model, config.compile, positions) if fits else HfDecoder(self.model)
            head = Head(self.model)
            check_speaker(self.model, decoder, head, self.start, positions, sharded)
        return decoder, head


class SharedLlm(FrozenLlm):
    """An LLM that never changes, with what runs it, checked up to `positions`."""

    def __init__(self, config: SpeakerConfig, positions: int, device: str | torch.device):
        super().__init__(config, positions)
        self.decoder, self.head = self.runner(config, positions, device, sharded=False)
        self.positions = positions

    def check(self, positions: int, name: str) -> None:
        """Raises DixitError if it cannot serve a speaker that needs so many positions."""
        if positions > self.positions:
            check_positions(name, self.model.config, positions)
            with refused_if_it_fails(self.model, name):
                check_speaker(self.model, self.decoder, self.head, self.start, positions, sharded=False)
            self.positions = positions


_opened: WeakValueDictionary[tuple[Any, ...], SharedLlm] = WeakValueDictionary()  # by place, settings, state of files


def shared_llm(config: SpeakerConfig, positions: int, device: str | torch.device) -> SharedLlm:
    """The LLM of a speaker without LoRA and sharding; a process holds each once while it is in use, whatever their
    numbers of positions, up to those that a decoder has in any case."""
    most = max(positions, POSITIONS)
    place = (config.llm, config.dtype, config.compile, most, str(device), *file_states(Path(config.llm)))
    found = _opened.get(place) or _opened.setdefault(place, SharedLlm(config, positions, device))
    found.check(positions, config.llm)
    return found
