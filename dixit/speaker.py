"""The speaker: CLIP patches -> attention adapter -> start token and K prefix vectors -> frozen LLM -> caption.

Only the adapter (and LoRA, if asked for) is trained. Captions are sampled from given uniform draws, so the
same draws give the same captions on any number of processes. A prefix is run once per image and its
key-value cache is shared by the image's N captions, in sampling and in the update (where the cache carries
gradients).

Leaves out beam search and any prompt text: the prefix alone conditions the LLM.

Shapes: B images, N captions per image, S = B*N, P patches, K prefix tokens, T caption tokens, D LLM width.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from dixit.assets import ASSETS, asset
from dixit.common import DixitError
from dixit.config import SpeakerConfig

Captions = tuple[Int[Tensor, "S T"], Bool[Tensor, "S T"], Float[Tensor, "S T"]]  # tokens, mask, log-probs


class Block(nn.Module):
    """Queries look at the patches, then at each other (pre-norm)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm_cross, self.norm_self, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.cross = nn.MultiheadAttention(width, heads, batch_first=True)
        self.self_ = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, q: Float[Tensor, "B K W"], patches: Float[Tensor, "B P W"]) -> Float[Tensor, "B K W"]:
        q = q + self.cross(self.norm_cross(q), patches, patches, need_weights=False)[0]
        x = self.norm_self(q)
        q = q + self.self_(x, x, x, need_weights=False)[0]
        return q + self.mlp(self.norm_mlp(q))


class Adapter(nn.Module):
    """Learned queries attend to the patches and become K prefix vectors at the LLM's embedding scale.

    `context` (B, c) optionally names the listeners; it is added to every query.
    """

    def __init__(self, config: SpeakerConfig, patches: int, patch_width: int, llm_width: int, scale: float):
        super().__init__()
        width = config.width
        self.inputs = nn.Sequential(nn.Linear(patch_width, width), nn.LayerNorm(width))
        self.places = nn.Parameter(torch.randn(patches, width) * 0.2)
        # Queries and output offsets as large as what flows past them: smaller ones let all K vectors become equal.
        self.queries = nn.Parameter(torch.randn(config.prefix, width))
        self.offsets = nn.Parameter(torch.randn(config.prefix, llm_width))
        self.context = nn.Linear(config.context, width, bias=False) if config.context else None
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.layers))
        self.outputs = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, llm_width))
        self.scale = scale

    def forward(self, patches: Float[Tensor, "B P Dv"],
                context: Float[Tensor, "B c"] | None = None) -> Float[Tensor, "B K D"]:
        keys = self.inputs(patches) + self.places
        q = self.queries.expand(len(patches), -1, -1)
        if self.context is not None and context is not None:
            q = q + self.context(context)[:, None]
        for block in self.blocks:
            q = block(q, keys)
        x = self.outputs(q) + self.offsets
        return F.layer_norm(x, x.shape[-1:]) * self.scale


def load_llm(name: str) -> tuple[Any, Any]:
    """A frozen causal LM and its tokenizer from an asset, a folder or a Hugging Face name.

    Raises DixitError where it cannot be had. Remote code is never run.
    """
    source = str(asset(name)) if any(name == known.name for known in ASSETS) else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        llm = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise DixitError(f"cannot load the LLM '{name}': {str(error).splitlines()[0]}") from None
    if tokenizer.eos_token_id is None:
        raise DixitError(f"the tokenizer of '{name}' has no end-of-sequence token")
    return llm.eval().requires_grad_(False), tokenizer


class Speaker:
    """A trainable `adapter` in front of a frozen LLM.

    `trained` is the module that holds exactly the trained parameters (adapter, and LoRA's); its forward is
    the adapter's. It may be replaced by a wrapped (distributed) version of itself.
    """

    def __init__(self, config: SpeakerConfig, patches: int, patch_width: int, seed: int = 0,
                 device: str | torch.device = "cpu"):
        self.config = config
        self.llm, self.tokenizer = load_llm(config.llm)
        embedding = self.llm.get_input_embeddings().weight
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            adapter = Adapter(config, patches, patch_width, embedding.shape[1], float(embedding.std()))
            if config.lora_rank:
                from peft import LoraConfig, get_peft_model
                self.llm = get_peft_model(self.llm, LoraConfig(
                    r=config.lora_rank, lora_alpha=2 * config.lora_rank, target_modules=["q_proj", "v_proj"]))
                lora = {n.replace(".", "_"): p for n, p in self.llm.named_parameters() if p.requires_grad}
                adapter.lora = nn.ParameterDict(lora)
        self.llm.to(device)
        self.update_llm = self.llm
        if config.update_dtype == "bfloat16" and not config.lora_rank:
            # Measured on CPUs: bfloat16 is faster for the wide update, slower for one-token sampling steps.
            self.update_llm = copy.deepcopy(self.llm).to(torch.bfloat16)
        self.trained: nn.Module = adapter.to(device)
        self.device = torch.device(device)
        self.eos = int(self.tokenizer.eos_token_id)
        self.start = self.eos if self.tokenizer.bos_token_id is None else int(self.tokenizer.bos_token_id)

    # --- one batch ---

    def _run(self, llm: Any, cache: DynamicCache, **inputs: Tensor) -> Float[Tensor, "S t D"]:
        """Last hidden states; the cache grows by the inputs."""
        body = llm.get_base_model().model if hasattr(llm, "get_base_model") else llm.model
        return body(past_key_values=cache, use_cache=True, **inputs).last_hidden_state

    def _prefill(self, llm: Any, prefix: Float[Tensor, "B K D"], repeats: int) -> tuple[DynamicCache, Tensor]:
        """Run start token and prefix once per image; the cache and last hidden states (S, D) of N copies each.

        The start token takes the role of attention sink. Without it the first prefix vector must, and gradients
        explode (measured: prefix gradient norm 6,700 against 40, and bfloat16 gradients point elsewhere).
        """
        start = llm.get_input_embeddings().weight[self.start].expand(len(prefix), 1, -1)
        cache = DynamicCache()
        hidden = self._run(llm, cache, inputs_embeds=torch.cat([start, prefix.to(llm.dtype)], dim=1))[:, -1]
        if repeats > 1:
            cache.batch_repeat_interleave(repeats)
            hidden = hidden.repeat_interleave(repeats, 0)
        return cache, hidden

    @torch.no_grad()
    def sample(self, prefix: Float[Tensor, "B K D"], uniforms: Float[Tensor, "S most"] | None = None,
               temperature: float = 1.0) -> Captions:
        """Captions by inverse-CDF sampling from `uniforms`, or greedily where it is None (then N = 1).

        Returns tokens (S, T'), a mask that covers each caption with its end token, and the log-probability
        of each token (at this temperature); T' <= T is the longest caption's length.
        """
        count = uniforms.shape[0] if uniforms is not None else len(prefix)
        most = uniforms.shape[1] if uniforms is not None else self.config.max_tokens
        cache, hidden = self._prefill(self.llm, prefix, count // len(prefix))
        done = torch.zeros(count, dtype=torch.bool, device=prefix.device)
        tokens, masks, logps = [], [], []
        for t in range(most):
            logits = self.llm.lm_head(hidden).float() / temperature
            logp = logits.log_softmax(-1)
            if uniforms is None:
                token = logits.argmax(-1)
            else:
                total = logp.exp().cumsum(-1)
                token = torch.searchsorted(total, uniforms[:, t:t + 1] * total[:, -1:]).squeeze(1)
                token = token.clamp_(max=logits.shape[-1] - 1)
            token = torch.where(done, self.eos, token)
            tokens.append(token)
            masks.append(~done)
            logps.append(logp.gather(1, token[:, None]).squeeze(1))
            done = done | (token == self.eos)
            if done.all() or t == most - 1:
                break
            hidden = self._run(self.llm, cache, input_ids=token[:, None])[:, -1]
        return torch.stack(tokens, 1), torch.stack(masks, 1), torch.stack(logps, 1)

    def logprobs(self, prefix: Float[Tensor, "B K D"], tokens: Int[Tensor, "S T"], mask: Bool[Tensor, "S T"],
                 temperature: float = 1.0) -> Float[Tensor, "S T"]:
        """Log-probability of given tokens (0 where masked), with gradients to the prefix.

        The prefix runs once per image; only hidden states that predict a real token reach the vocabulary.
        """
        llm = self.update_llm
        cache, first = self._prefill(llm, prefix, len(tokens) // len(prefix))
        hidden = first[:, None]
        if tokens.shape[1] > 1:
            hidden = torch.cat([hidden, self._run(llm, cache, input_ids=tokens[:, :-1])], dim=1)
        logits = llm.lm_head(hidden[mask]).float() / temperature
        picked = logits.gather(1, tokens[mask][:, None]).squeeze(1) - logits.logsumexp(-1)
        return torch.zeros(mask.shape, device=picked.device).masked_scatter(mask, picked)

    @torch.no_grad()
    def perplexity_logp(self, tokens: Int[Tensor, "S T"], mask: Bool[Tensor, "S T"]) -> Float[Tensor, "S T"]:
        """Log-probability of captions under the LLM alone: the start token and no prefix."""
        nothing = torch.empty(len(tokens), 0, self.llm.config.hidden_size, device=tokens.device)
        return self.logprobs(nothing, tokens, mask)

    # --- text ---

    def encode(self, texts: list[str]) -> tuple[Int[Tensor, "S T"], Bool[Tensor, "S T"]]:
        """Tokens of captions, each ended by the end token and cut at `max_tokens`, and their mask."""
        rows = [ids[: self.config.max_tokens - 1] + [self.eos]
                for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]
        longest = max(map(len, rows))
        tokens = torch.full((len(rows), longest), self.eos)
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        for i, row in enumerate(rows):
            tokens[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), True
        return tokens.to(self.device), mask.to(self.device)

    def decode(self, tokens: Int[Tensor, "S T"], mask: Bool[Tensor, "S T"]) -> list[str]:
        """Captions as text, without special tokens."""
        rows = [row[keep].tolist() for row, keep in zip(tokens, mask, strict=True)]
        return [text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]

    @torch.no_grad()
    def say(self, patches: Float[Tensor, "B P Dv"], samples: int = 0, temperature: float = 1.0,
            seed: int = 0, context: Float[Tensor, "B c"] | None = None) -> list[list[str]]:
        """Captions of images: the greedy one, then `samples` sampled ones, for each image."""
        prefix = self.trained(patches.to(self.device), context)
        columns = [self.decode(*self.sample(prefix)[:2])]
        if samples:
            draws = torch.rand(len(patches) * samples, self.config.max_tokens,
                               generator=torch.Generator().manual_seed(seed)).to(self.device)
            texts = self.decode(*self.sample(prefix, draws, temperature)[:2])
            columns += [texts[i::samples] for i in range(samples)]
        return [list(row) for row in zip(*columns, strict=True)]
