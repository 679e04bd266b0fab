"""Loading the frozen LLM: what cannot serve a speaker is refused in one line, where possible before weights are read.

Leaves out whether the speaker computes what the LLM does (self_check.py).
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from dixit.common import DixitError, first_line
from dixit.data.assets import ASSETS, asset


def max_positions(config: Any) -> int | None:
    """The longest sequence that an LLM's config allows; None if it names no limit.

    Longrope has other frequencies beyond the length of its first training, which would not fit keys that are cached
    already: there the limit is that length. Dynamic rope keeps its frequencies up to `max_position_embeddings`.
    """
    config = config.get_text_config(decoder=True)
    ropes = getattr(config, "rope_parameters", None) or {}
    limits = [rope.get("original_max_position_embeddings") for rope in [ropes, *ropes.values()]
              if isinstance(rope, dict) and rope.get("rope_type") == "longrope"]
    return min((n for n in [getattr(config, "max_position_embeddings", None), *limits] if n and n > 0), default=None)


def _check_config(name: str, config: Any, tokenizer: Any, positions: int) -> None:
    if config.is_encoder_decoder:
        raise DixitError(f"speaker.llm '{name}' is a sequence-to-sequence model ({config.model_type}); choose a "
                         "decoder-only causal LM")
    if tokenizer.eos_token_id is None:
        raise DixitError(f"the tokenizer of '{name}' has no end-of-sequence token")
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):  # as transformers makes it without its files
        raise DixitError(f"the tokenizer of '{name}' has special tokens only; its files are missing or damaged")
    largest = max([len(tokenizer) - 1, *tokenizer.added_tokens_decoder])
    size = getattr(config.get_text_config(decoder=True), "vocab_size", None)
    if size is not None and largest >= size:
        raise DixitError(f"the tokenizer of '{name}' has token {largest}, but the LLM has embeddings for tokens 0 to "
                         f"{size - 1} only; use the tokenizer that the LLM was trained with")
    check_positions(name, config, positions)


def check_positions(name: str, config: Any, positions: int) -> None:
    """Raises DixitError if an LLM's config does not allow so many positions."""
    limit = max_positions(config)
    if limit is not None and positions > limit:
        raise DixitError(f"'{name}' has {limit} positions, but start token, prefix and caption need {positions}; lower "
                         "speaker.max_tokens or speaker.prefix")


def load_llm(name: str, dtype: str = "float32", positions: int = 0) -> tuple[Any, Any]:
    """A frozen causal LM and its tokenizer from an asset, a folder or a Hugging Face name.

    Raises DixitError where it cannot be loaded, or cannot run `positions` tokens. Remote code is never run.
    """
    if dtype not in ("float32", "bfloat16"):
        raise DixitError(f"speaker.dtype must be float32 or bfloat16, not '{dtype}'")
    source = str(asset(name)) if any(name == known.name for known in ASSETS) else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        _check_config(name, config, tokenizer, positions)
        opened: Any = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=getattr(torch, dtype), trust_remote_code=False, output_loading_info=True,
            use_safetensors=True)
        llm, loaded = opened
        refuse_missing(name, loaded)
    except DixitError:
        raise
    except Exception as error:  # many kinds, each about bad input
        raise DixitError(f"cannot load the LLM '{name}': {first_line(error)}") from None
    return llm.eval().requires_grad_(False), tokenizer


def refuse_missing(name: str, loaded: dict[str, Any]) -> None:
    """Raises DixitError if weights lack tensors of their config, which transformers would leave at random values;
    `loaded` is its loading info."""
    missing = sorted(loaded["missing_keys"])
    if missing:
        raise DixitError(f"the weights of '{name}' lack {len(missing)} tensors of its config, e.g. {missing[0]}; "
                         "copy or download them again")


def add_lora(llm: Any, name: str, rank: int, targets: tuple[str, ...]) -> Any:
    """The LLM with LoRA in the modules named by `targets`; where it is empty, in those that peft names for the family,
    or q_proj and v_proj where peft does not know the family.

    Raises DixitError, with names of modules that exist, if there are no such modules.
    """
    from peft import LoraConfig, get_peft_model
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as USUAL

    usual = USUAL.get(llm.config.model_type)
    chosen = targets or (usual if isinstance(usual, list) else ("q_proj", "v_proj"))
    inside = set(llm.get_decoder().modules())  # not in an image tower, which some families have too
    modules = {n: module for n, module in llm.named_modules() if module in inside}
    linear = sorted({n.rpartition(".")[2] for n, module in modules.items() if isinstance(module, nn.Linear | Conv1D)})
    hint = f"set speaker.lora_targets to some of its linear modules: {', '.join(linear)}"
    found = []
    for target in chosen:
        found += (named := [n for n in modules if n == target or n.endswith("." + target)])
        if not named:
            raise DixitError(f"'{name}' ({llm.config.model_type}) has no module '{target}' for LoRA; {hint}")
    try:
        with warnings.catch_warnings():  # that a Conv1D's weight is transposed, which peft then sees to
            warnings.simplefilter("ignore")
            return get_peft_model(llm, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=found))
    except ValueError as error:
        raise DixitError(f"cannot add LoRA to '{name}': {first_line(error)}; {hint}") from None
