"""The frozen LLM as the speaker runs it: a prefix once per image, then caption tokens after a shared cache.

Two decoders with the same methods: `HfDecoder` runs any Hugging Face causal LM, `LlamaDecoder` runs those of
the Llama family (SmolLM2 among them) with fewer and wider operations: one product for queries, keys and values, one
for gate and up, one cache tensor for all layers, no expanded keys. It reads the same weights and gives the same
numbers (tests hold the two together). Gradients flow through the cache to the prefix, never to the LLM.

Sampling asks for the same small step again and again, and a GPU would spend it on launching a thousand kernels. There
`LlamaDecoder` keeps the cache in memory that stays where it is and records the step once as a CUDA graph; if asked, it
has torch.compile join the operations of a layer, there and in the update, for which a run takes longer to begin. A CPU
has no launches to save: there finished captions are dropped instead.

Leaves out padding on the left, sliding windows, and adapters inside the LLM (LoRA runs through `HfDecoder`), and fixed
memory for `HfDecoder`.

Shapes: S captions, t new tokens, p tokens in the cache, D LLM width, H key-value heads, G query heads for each of
them, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

RECORDED = 4  # shapes of batches whose fixed memory is kept


class Decoder(Protocol):
    """What the speaker asks of an LLM. A cache is the decoder's own and is passed back to it only."""

    fixed: bool  # whether `begin` gives fixed memory: captions are not dropped from it

    def start(self, inputs: Float[Tensor, "B p D"]) -> tuple[Any, Float[Tensor, "B D"]]:
        """Run a prefix; its cache and the last hidden states. With gradients where they are on."""

    def take(self, cache: Any, rows: Int[Tensor, "S"], room: int = 0) -> Any:
        """A cache of its own for each of `rows`, with `room` for so many tokens; gradients flow to the old one."""

    def begin(self, cache: Any, rows: Int[Tensor, "S"], room: int) -> Any:
        """The same without gradients, for captions that grow one token at a time; in use until the next `begin`."""

    def extend(self, cache: Any, tokens: Int[Tensor, "S t"]) -> Float[Tensor, "S t D"]:
        """Run tokens after the cache. Without gradients the cache then holds them too."""

    def logits(self, hidden: Float[Tensor, "S D"]) -> Float[Tensor, "S V"]:
        """The vocabulary's logits, without gradients."""


class HfDecoder:
    """Any Hugging Face causal LM."""

    fixed = False

    def __init__(self, llm: Any):
        self.llm = llm
        if next(llm.parameters()).device.type == "cpu":
            # Captions are so short that plain attention beats the fused kernel (measured: update 1.4 times as fast).
            llm.set_attn_implementation("eager")

    def _run(self, cache: DynamicCache, **inputs: Tensor) -> Float[Tensor, "S t D"]:
        plain = self.llm.get_base_model() if hasattr(self.llm, "get_base_model") else self.llm
        return plain.base_model(past_key_values=cache, use_cache=True, **inputs).last_hidden_state

    def start(self, inputs: Float[Tensor, "B p D"]) -> tuple[DynamicCache, Float[Tensor, "B D"]]:
        cache = DynamicCache()
        return cache, self._run(cache, inputs_embeds=inputs)[:, -1]

    def take(self, cache: DynamicCache, rows: Int[Tensor, "S"], room: int = 0) -> DynamicCache:
        layers: list[Any] = cache.layers
        return DynamicCache([(layer.keys[rows], layer.values[rows]) for layer in layers])

    begin = take

    def extend(self, cache: DynamicCache, tokens: Int[Tensor, "S t"]) -> Float[Tensor, "S t D"]:
        return self._run(cache, input_ids=tokens)

    def logits(self, hidden: Float[Tensor, "S D"]) -> Float[Tensor, "S V"]:
        return self.llm.get_output_embeddings()(hidden)


class _RmsNorm(torch.autograd.Function):
    """x / rms(x) * weight in float32 inside, as Hugging Face's; the gradient to x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(x, weight, scale)
        return (wide * scale).to(x.dtype) * weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        slope, unit = (grads[0] * weight).float(), x.float().mul_(scale)
        inner = (slope * unit).mean(-1, keepdim=True)
        return (slope - unit.mul_(inner)).mul_(scale).to(x.dtype), None, None


def _rms_norm(x: Float[Tensor, "S t D"], weight: Float[Tensor, "D"], epsilon: float) -> Float[Tensor, "S t D"]:
    if torch.is_grad_enabled():
        return _RmsNorm.apply(x, weight, epsilon)
    return F.rms_norm(x, weight.shape, weight, epsilon)  # fewer operations


class _PackedProduct(torch.autograd.Function):
    """x @ weight.T with a weight in oneDNN's own layout; the gradient to x alone, by the plain weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, packed: Tensor) -> Tensor:
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(weight)
        return torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0] @ ctx.saved_tensors[0], None, None


class _Product:
    """A frozen linear map without bias.

    On a CPU bfloat16 weights are also kept in oneDNN's layout, as torch.compile does when it freezes a model: without
    it every product lays the weight out anew (measured: 1.4 times as long for 32 captions). Weights of 8 or 4 bits were
    slower still (2.3 to 3.1 times as long for 32 captions of SmolLM2-135M; those of 4 bits were faster for a single one
    only). Those whose inputs are rounded to 8 bits too were 1.7 times as fast, but one range is taken for the whole
    batch, so that a caption's probability would depend on the others'; and gradients would not be of what was computed.
    """

    def __init__(self, *modules: Any):
        """The modules' weights side by side; each module keeps a view of its own, so that memory does not grow."""
        self.weight = modules[0].weight.detach()
        if len(modules) > 1:
            self.weight = torch.cat([m.weight.detach() for m in modules])
            for module, part in zip(modules, self.weight.split([len(m.weight) for m in modules]), strict=True):
                module.weight.data = part
        self.packed = None
        if self.weight.device.type == "cpu" and self.weight.dtype == torch.bfloat16 \
                and torch.ops.mkldnn._is_mkldnn_bf16_supported():
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, 128)

    def __call__(self, x: Float[Tensor, "*n D"]) -> Float[Tensor, "*n E"]:
        if self.packed is None:
            return F.linear(x, self.weight)
        return _PackedProduct.apply(x, self.weight, self.packed)


class _Layer:
    """The weights of one Llama layer; those that read the same input are one."""

    def __init__(self, layer: Any):
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = _Product(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out = _Product(attention.o_proj)
        self.gate_up = _Product(mlp.gate_proj, mlp.up_proj)
        self.down = _Product(mlp.down_proj)
        self.norms = layer.input_layernorm.weight, layer.post_attention_layernorm.weight


class _Cache:
    """Keys and values of all layers (2, layers, S, H, room, d), of which the first `length` places are filled."""

    def __init__(self, keys_values: Tensor, length: int):
        self.keys_values, self.length = keys_values, length


class _Fixed:
    """A cache that stays where it is, for S captions that grow one token at a time, and the step that makes them grow.

    The step attends to the whole room and hides what is not filled yet. How far it is filled enters it as the tensor
    `place`, which it moves on itself: nothing else changes from token to token, so that it can be recorded.
    """

    def __init__(self, decoder: LlamaDecoder, captions: int, room: int):
        embed = decoder.embed
        self.keys_values = embed.new_zeros(2, len(decoder.layers), captions, decoder.heads, room, decoder.width)
        self.tokens = torch.zeros(captions, 1, dtype=torch.long, device=embed.device)
        self.place = torch.zeros(1, dtype=torch.long, device=embed.device)  # of the next token
        self.places = torch.arange(room, device=embed.device)

        def step() -> Float[Tensor, "S 1 D"]:
            hidden, _ = decoder._forward(F.embedding(self.tokens, embed), self)
            self.place += 1
            return hidden

        self.step = _recorded(step, self.place) if embed.device.type == "cuda" else step

    def fill(self, keys_values: Float[Tensor, "2 layers S H p d"]) -> None:
        """Begin anew after these."""
        filled = keys_values.shape[4]
        self.keys_values[..., :filled, :] = keys_values
        self.keys_values[..., filled:, :] = 0  # a NaN of an earlier batch would come through any mask
        self.place.fill_(filled)


def _recorded(step: Callable[[], Tensor], place: Tensor) -> Callable[[], Tensor]:
    """The step as a CUDA graph; what it returns is overwritten when it is taken again."""
    with torch.cuda.device(place.device):
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # what is done once only, such as compiling, must not be recorded
            for _ in range(3):
                place.zero_()
                step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Calls to CUDA by other threads, such as NCCL's watchdog, are let through.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            hidden = step()

    def replay() -> Tensor:
        graph.replay()
        return hidden

    return replay


class LlamaDecoder:
    """A Llama-family model without LoRA."""

    def __init__(self, llm: Any, compile: str = "auto"):
        """`compile` is speaker.compile, which counts on a GPU only."""
        model, config = llm.model, llm.config
        self.embed: Tensor = model.embed_tokens.weight
        self.layers = [_Layer(layer) for layer in model.layers]
        self.head = _Product(llm.get_output_embeddings())
        self.norm, self.epsilon = model.norm.weight, config.rms_norm_eps
        self.heads = config.num_key_value_heads
        self.groups = config.num_attention_heads // self.heads
        self.width = model.layers[0].self_attn.head_dim
        places = torch.arange(min(1024, config.max_position_embeddings), device=self.embed.device)[None]
        cos, sin = model.rotary_emb(self.embed[:1, None], places)
        half = self.width // 2
        self.cos, self.sin = cos[0, :, None, :half], sin[0, :, None, :half]  # (places, 1, d/2)
        on_gpu = self.embed.device.type == "cuda"
        self.fixed = on_gpu and compile != "no"
        self.begun: dict[tuple[int, int], _Fixed] = {}
        self.ask, self.answer = self._ask, self._answer
        if on_gpu and compile == "yes":  # parts of a layer, not the whole step: compiled once, they serve all layers
            self.ask, self.answer = torch.compile(self._ask), torch.compile(self._answer)

    @staticmethod
    def fits(llm: Any) -> bool:
        """Whether this decoder can run the model."""
        c: Any = llm.config
        return (type(llm).__name__ == "LlamaForCausalLM" and llm.get_output_embeddings().bias is None
                and not c.attention_bias and not c.mlp_bias and c.hidden_act == "silu"
                and (c.rope_parameters or {}).get("rope_type", "default") != "dynamic")

    def _ask(self, layer: _Layer, x: Float[Tensor, "S t D"], cos: Float[Tensor, "t 1 half"],
             sin: Float[Tensor, "t 1 half"]) -> tuple[Tensor, Tensor, Tensor]:
        """A layer's queries (S, H, G*t, d), and keys and values (S, H, t, d) of the new tokens."""
        s, t, _ = x.shape
        h, g, d = self.heads, self.groups, self.width
        mixed = layer.qkv(_rms_norm(x, layer.norms[0], self.epsilon)).view(s, t, -1, d)
        left, right = mixed[:, :, :-h].chunk(2, -1)  # of queries and keys
        turned = torch.cat([left * cos - right * sin, right * cos + left * sin], -1)
        query = turned[:, :, :-h].unflatten(2, (h, g)).permute(0, 2, 3, 1, 4).reshape(s, h, g * t, d)
        return query, turned[:, :, -h:].transpose(1, 2), mixed[:, :, -h:].transpose(1, 2)

    def _answer(self, layer: _Layer, x: Float[Tensor, "S t D"], query: Float[Tensor, "S H Gt d"],
                key: Float[Tensor, "S H p d"], value: Float[Tensor, "S H p d"],
                mask: Float[Tensor, "t p"] | None) -> Float[Tensor, "S t D"]:
        """What a layer makes of its queries and all keys and values."""
        s, t, _ = x.shape
        g = self.groups
        scores = query @ key.transpose(2, 3) * self.width**-0.5
        if mask is not None:
            scores = (scores.unflatten(2, (g, t)) + mask).flatten(2, 3)
        heard = scores.softmax(-1, dtype=torch.float32).to(x.dtype) @ value
        heard = heard.unflatten(2, (g, t)).permute(0, 3, 1, 2, 4).reshape(s, t, -1)
        x = x + layer.out(heard)
        gate, up = layer.gate_up(_rms_norm(x, layer.norms[1], self.epsilon)).chunk(2, -1)
        return x + layer.down(F.silu(gate) * up)

    def _forward(self, x: Float[Tensor, "S t D"],
                 cache: _Cache | _Fixed | None) -> tuple[Float[Tensor, "S t D"], list]:
        """Hidden states of the new tokens, and the keys and values of every layer."""
        t, mask = x.shape[1], None
        if isinstance(cache, _Fixed):
            places, own = cache.places, cache.place
            cos, sin = self.cos.index_select(0, own), self.sin.index_select(0, own)
        else:
            past = cache.length if cache else 0
            places = torch.arange(past + t, device=x.device)
            own = places[past:]
            cos, sin = self.cos[past:past + t], self.sin[past:past + t]
        if t > 1 or isinstance(cache, _Fixed):  # a new token sees itself and what is before it
            mask = torch.zeros(t, len(places), dtype=x.dtype, device=x.device).masked_fill_(
                places > own[:, None], torch.finfo(x.dtype).min)
        # All layers at once: the gradient of picking one layer is as large as the whole cache.
        before = [part.unbind(0) for part in cache.keys_values.unbind(0)] if cache and torch.is_grad_enabled() else []
        made = []
        for index, layer in enumerate(self.layers):
            query, key, value = self.ask(layer, x, cos, sin)
            if isinstance(cache, _Fixed):
                keys, values = cache.keys_values[:, index]
                key, value = keys.index_copy_(2, cache.place, key), values.index_copy_(2, cache.place, value)
            elif before:
                key, value = torch.cat([before[0][index], key], 2), torch.cat([before[1][index], value], 2)
            elif cache:
                cache.keys_values[0, index, :, :, past:past + t] = key
                cache.keys_values[1, index, :, :, past:past + t] = value
                key, value = cache.keys_values[:, index, :, :, :past + t]
            else:
                made.append((key, value))
            x = self.answer(layer, x, query, key, value, mask)
        return _rms_norm(x, self.norm, self.epsilon), made

    def start(self, inputs: Float[Tensor, "B p D"]) -> tuple[_Cache, Float[Tensor, "B D"]]:
        hidden, made = self._forward(inputs, None)
        keys_values = torch.stack([torch.stack(part) for part in zip(*made, strict=True)])
        return _Cache(keys_values, inputs.shape[1]), hidden[:, -1]

    def take(self, cache: _Cache, rows: Int[Tensor, "S"], room: int = 0) -> _Cache:
        taken = cache.keys_values.index_select(2, rows)
        if room and not torch.is_grad_enabled():
            taken = F.pad(taken, (0, 0, 0, room))
        return _Cache(taken, cache.length)

    def begin(self, cache: _Cache, rows: Int[Tensor, "S"], room: int) -> _Cache | _Fixed:
        if not self.fixed:
            return self.take(cache, rows, room)
        shape = len(rows), cache.length + room
        if shape not in self.begun:
            if len(self.begun) == RECORDED:
                del self.begun[next(iter(self.begun))]
            self.begun[shape] = _Fixed(self, *shape)
        self.begun[shape].fill(cache.keys_values.index_select(2, rows))
        return self.begun[shape]

    def extend(self, cache: _Cache | _Fixed, tokens: Int[Tensor, "S t"]) -> Float[Tensor, "S t D"]:
        if isinstance(cache, _Fixed):
            cache.tokens.copy_(tokens)
            return cache.step()
        hidden, _ = self._forward(F.embedding(tokens, self.embed), cache)
        if not torch.is_grad_enabled():
            cache.length += tokens.shape[1]
        return hidden

    def logits(self, hidden: Float[Tensor, "S D"]) -> Float[Tensor, "S V"]:
        return self.head(hidden)
