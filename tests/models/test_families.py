"""Language models of many families: the speaker gives each one's own log-probabilities, or refuses it in one line.

Each is a random model of two layers or a few more. "Its own" is a plain forward pass of the model, without a cache.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers as hf

from dixit.common import DixitError
from dixit.config import SpeakerConfig
from dixit.models import head
from dixit.models.decoder import HfDecoder, LlamaDecoder
from dixit.models.llm import max_positions
from dixit.models.speaker import Speaker

PATCHES, WIDTH, K, T, V = 4, 16, 3, 12, 128
BASE = {"vocab_size": V, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 64, "initializer_range": 0.15}
MODERN = BASE | {"intermediate_size": 128, "num_key_value_heads": 2}
GPT = {"vocab_size": V, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1,
       "eos_token_id": 2, "initializer_range": 0.15}
OPT = {k: v for k, v in BASE.items() if k != "initializer_range"} | {"ffn_dim": 128, "init_std": 0.15}
ROPES = {
    "linear": {"factor": 2.0}, "dynamic": {"factor": 2.0}, "yarn": {"factor": 4.0}, "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
    "longrope": {"factor": 4.0, "original_max_position_embeddings": 32,
                 "short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [2.0 + i for i in range(8)]}}


def rope(kind: str) -> dict:
    return {"rope_theta": 100.0, "rope_type": kind} | ROPES.get(kind, {})


def llama(kind: str) -> hf.LlamaConfig:
    return hf.LlamaConfig(**MODERN, rope_parameters=rope(kind))


SLIDING = "sliding_attention"
FAMILIES: dict[str, Callable[[], hf.PretrainedConfig]] = {
    **{f"llama, {kind} rope": lambda kind=kind: llama(kind) for kind in ("default", *ROPES)},
    "llama with biases": lambda: hf.LlamaConfig(**MODERN, attention_bias=True, mlp_bias=True),
    "mistral, window of 5": lambda: hf.MistralConfig(**MODERN, sliding_window=5),
    "qwen2": lambda: hf.Qwen2Config(**MODERN),
    "qwen2, window of 5": lambda: hf.Qwen2Config(**MODERN, use_sliding_window=True, sliding_window=5,
                                                 max_window_layers=1),
    "qwen3": lambda: hf.Qwen3Config(**MODERN, head_dim=32),
    "gemma": lambda: hf.GemmaConfig(**MODERN, head_dim=16),
    "gemma2": lambda: hf.Gemma2Config(**MODERN, head_dim=16, sliding_window=5, final_logit_softcapping=2.0,
                                      attn_logit_softcapping=1.0),
    "gemma3": lambda: hf.Gemma3TextConfig(**MODERN, head_dim=16, sliding_window=5,
                                          layer_types=[SLIDING, "full_attention"]),
    "gemma3 with images": lambda: hf.Gemma3Config(
        text_config=MODERN | {"head_dim": 16, "sliding_window": 5, "layer_types": [SLIDING, "full_attention"]},
        vision_config={"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                       "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4, image_token_index=125, boi_token_index=126, eoi_token_index=127),
    "deepseek_v2": lambda: hf.DeepseekV2Config(**MODERN | {"num_key_value_heads": 4}, kv_lora_rank=16, q_lora_rank=16,
                                               qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16,
                                               n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32),
    "llama4": lambda: hf.Llama4TextConfig(**MODERN | {"num_hidden_layers": 4}, intermediate_size_mlp=64, head_dim=16,
                                          num_local_experts=2, attention_chunk_size=5),
    "minicpm3": lambda: hf.MiniCPM3Config(**MODERN | {"num_key_value_heads": 4}, kv_lora_rank=16, q_lora_rank=16,
                                          qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16),
    "phi3": lambda: hf.Phi3Config(**MODERN, rope_parameters=rope("longrope"), original_max_position_embeddings=32),
    "phi": lambda: hf.PhiConfig(**MODERN),
    "olmo2": lambda: hf.Olmo2Config(**MODERN),
    "smollm3": lambda: hf.SmolLM3Config(**MODERN, no_rope_layers=[1, 0]),
    "granite": lambda: hf.GraniteConfig(**MODERN, embedding_multiplier=12.0, logits_scaling=7.0,
                                        residual_multiplier=0.3, attention_multiplier=0.2),
    "cohere": lambda: hf.CohereConfig(**MODERN, logit_scale=0.3),
    "cohere2": lambda: hf.Cohere2Config(**MODERN, logit_scale=0.3, sliding_window=5,
                                        layer_types=[SLIDING, "full_attention"]),
    "gpt2": lambda: hf.GPT2Config(**GPT),
    "gpt_neo, window of 5": lambda: hf.GPTNeoConfig(**BASE, num_layers=2, num_heads=4, window_size=5,
                                                    attention_types=[[["global", "local"], 1]]),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**BASE, intermediate_size=128),
    "gptj": lambda: hf.GPTJConfig(**GPT, rotary_dim=8),
    "opt": lambda: hf.OPTConfig(**OPT),
    "opt, narrow embeddings": lambda: hf.OPTConfig(**OPT, word_embed_proj_dim=32, do_layer_norm_before=False),
    "bloom": lambda: hf.BloomConfig(vocab_size=V, hidden_size=64, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2,
                                    initializer_range=0.15),
    "falcon": lambda: hf.FalconConfig(**BASE),
    "falcon, alibi": lambda: hf.FalconConfig(**BASE, alibi=True),
    "mpt": lambda: hf.MptConfig(vocab_size=V, d_model=64, n_layers=2, n_heads=4, max_seq_len=64,
                                initializer_range=0.15),
    "stablelm": lambda: hf.StableLmConfig(**MODERN),
    "mixtral": lambda: hf.MixtralConfig(**MODERN, num_local_experts=4),
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(**MODERN, head_dim=16, num_experts=4, num_experts_per_tok=2,
                                           moe_intermediate_size=32),
    "gpt_oss": lambda: hf.GptOssConfig(**MODERN, head_dim=16, num_local_experts=4, num_experts_per_tok=2,
                                       sliding_window=5, rope_parameters=rope("yarn")),
    "starcoder2": lambda: hf.Starcoder2Config(**MODERN, sliding_window=5),
}


def save_tokenizer(folder: Path, tokens: int = 120, **special: str) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    plain = Tokenizer(models.WordLevel({w: i for i, w in enumerate(
        ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(tokens - 3))])}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    hf.PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>", **special).save_pretrained(folder)


def save_llm(folder: Path, config: hf.PretrainedConfig, **special: str) -> Path:
    """A random model of this config with a tokenizer of its vocabulary."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        llm = hf.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in llm.parameters():
                if parameter.dim() == 1:  # norms and biases that are 1 and 0 would hide errors
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    llm.save_pretrained(folder)
    save_tokenizer(folder, **(special or {"bos_token": "<s>", "eos_token": "</s>"}))
    return folder


def settings(folder: Path, **keys: object) -> SpeakerConfig:
    return SpeakerConfig(**({"llm": str(folder), "prefix": K, "width": 32, "layers": 1, "heads": 2, "max_tokens": T}
                            | keys))


def make(folder: Path, **keys: object) -> Speaker:
    return Speaker(settings(folder, **keys), PATCHES, WIDTH)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory) -> SimpleNamespace:
    """A speaker, and the same LLM as Hugging Face loads it."""
    folder = save_llm(tmp_path_factory.mktemp("llm"), FAMILIES[request.param]())
    plain = hf.AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)
    return SimpleNamespace(name=request.param, folder=folder, speaker=make(folder), plain=plain)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def adapted(speaker: Speaker) -> torch.Tensor:
    return speaker.trained(draw(3, PATCHES, WIDTH) * 4 - 2).detach()


def prefixes(speaker: Speaker) -> torch.Tensor:
    """Random prefixes of three images, as large as the adapter's, which at first are nearly equal."""
    adapter = adapted(speaker)
    return torch.randn(adapter.shape, generator=torch.Generator().manual_seed(0)) * adapter.std()


def own_logits(model: torch.nn.Module, start: int, prefix: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Each caption behind its own start token and prefix; row t predicts token t, and there is one row more."""
    embed = model.get_input_embeddings()
    repeated = prefix.repeat_interleave(len(tokens) // len(prefix), 0)
    inputs = torch.cat([embed(torch.full((len(tokens), 1), start)), repeated, embed(tokens)], 1)
    return model(inputs_embeds=inputs, use_cache=False).logits[:, prefix.shape[1]:]


def own_logp(model: torch.nn.Module, start: int, prefix: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor,
             temperature: float = 1.0) -> torch.Tensor:
    logits = own_logits(model, start, prefix, tokens)[:, :-1] / temperature
    return logits.log_softmax(-1).gather(2, tokens[..., None]).squeeze(2) * mask


def close(mine: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(mine, wanted, atol=1e-4, rtol=0)


def sampled(speaker: Speaker) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A prefix, and captions of which some end early: a token that one of them has serves as the end token."""
    prefix, draws = prefixes(speaker), draw(24, T)
    speaker.eos = int(speaker.sample(prefix, draws)[0][0, 3])
    tokens, mask, logp = speaker.sample(prefix, draws)
    lengths = mask.sum(1)
    assert lengths.min() < lengths.max() and mask.shape[1] > 1
    return prefix, tokens, mask, logp


def test_text_has_the_models_own_log_probabilities(family):
    speaker = family.speaker
    tokens, mask = speaker.encode(["w5 w9 w100 w7 w31 w5 w6", "w8", " ".join(f"w{7 * i}" for i in range(1, T))])
    found = speaker.perplexity_logp(tokens, mask)
    for row, keep, mine in zip(tokens, mask, found, strict=True):
        ids = torch.cat([torch.tensor([1]), row[keep]])[None]
        wanted = family.plain(ids).logits[0, :-1].log_softmax(-1).gather(1, row[keep][:, None]).squeeze(1)
        close(mine[keep], wanted)


@pytest.mark.parametrize("check_every", [1, 4])
def test_sampling_rescoring_and_the_models_own_pass_agree(family, check_every):
    speaker = family.speaker
    speaker.check_every = check_every
    prefix, tokens, mask, logp = sampled(speaker)
    close(logp, own_logp(family.plain, 1, prefix, tokens, mask))
    close(speaker.logprobs(prefix, tokens, mask), logp)
    colder = speaker.logprobs(prefix, tokens, mask, temperature=0.7)
    close(colder, own_logp(family.plain, 1, prefix, tokens, mask, 0.7))


def test_the_next_token_has_the_models_own_distribution(family):
    speaker, prefix = family.speaker, prefixes(family.speaker)
    tokens = torch.arange(3 * T).view(3, T) + 4
    wanted = own_logits(family.plain, 1, prefix, tokens).log_softmax(-1)
    for length in (0, 1, T):
        close(speaker.next_logp(prefix, tokens[:, :length]), wanted[:, length])


def test_the_gradient_to_the_prefix_is_that_of_the_models_own_pass(family):
    prefix, tokens, mask, _ = sampled(family.speaker)
    weights, slopes = draw(*tokens.shape, seed=1), []
    for score in (lambda p: family.speaker.logprobs(p, tokens, mask, 0.7),
                  lambda p: own_logp(family.plain, 1, p, tokens, mask, 0.7)):
        p = prefix.clone().requires_grad_()
        (score(p) * weights).sum().backward()
        slopes.append(p.grad)
    assert (slopes[0] - slopes[1]).norm() <= 1e-4 * slopes[1].norm() > 0


def test_prefix_vectors_are_as_large_as_embedded_tokens(family):
    embed = family.plain.get_input_embeddings()
    spread = float(embed(torch.arange(V)).std())
    prefix = adapted(family.speaker)
    assert prefix.shape == (3, K, embed(torch.tensor(5)).shape[-1])
    assert float(prefix.std()) == pytest.approx(spread, rel=0.05)


def test_lora_begins_as_no_change_and_gets_gradients(family):
    own = {"phi3": ("qkv_proj",), "deepseek_v2": ("kv_b_proj",), "minicpm3": ("kv_b_proj",)}  # peft names none
    targets = own.get(family.name, ())
    speaker = make(family.folder, lora_rank=2, lora_targets=targets)
    prefix, tokens, mask, _ = sampled(family.speaker)
    logp = speaker.logprobs(prefix, tokens, mask)
    close(logp.detach(), own_logp(family.plain, 1, prefix, tokens, mask))
    logp.sum().backward()
    slopes = [p.grad.abs().sum() for n, p in speaker.trained.named_parameters() if "lora_B" in n]
    assert slopes and all(slope > 0 for slope in slopes)


# --- greedy captions, bfloat16, heads ---

FEW = ["gemma2", "mistral, window of 5", "bloom", "opt, narrow embeddings", "gpt2", "cohere2", "llama, yarn rope"]


@pytest.mark.parametrize("name", FEW)
def test_greedy_captions_are_those_that_generate_gives(name, tmp_path):
    folder = save_llm(tmp_path, FAMILIES[name]())
    speaker, plain = make(folder), hf.AutoModelForCausalLM.from_pretrained(folder).eval()
    prefix, *_ = sampled(speaker)
    tokens, mask, _ = speaker.sample(prefix)
    start = plain.get_input_embeddings()(torch.ones(3, 1, dtype=torch.long))
    wanted = plain.generate(inputs_embeds=torch.cat([start, prefix], 1), max_new_tokens=T, do_sample=False,
                            eos_token_id=speaker.eos, pad_token_id=speaker.eos)
    assert torch.equal(tokens, wanted[:, :tokens.shape[1]]) and len(tokens.unique(dim=0)) == 3 and mask.any()


@pytest.mark.parametrize("name", FEW)
def test_in_bfloat16_a_family_is_close_to_float32(name, tmp_path):
    folder = save_llm(tmp_path, FAMILIES[name]())
    wide, half = make(folder), make(folder, dtype="bfloat16")
    prefix, tokens, mask, logp = sampled(wide)
    torch.testing.assert_close(half.logprobs(prefix, tokens, mask).detach(), logp, atol=0.5, rtol=0.1)


@pytest.mark.parametrize(("name", "scale"), [("llama, default rope", 1.0), ("granite", 1 / 7), ("cohere", 0.3),
                                             ("gptj", 1.0), ("gemma2", None)])
def test_a_head_is_plain_up_to_a_constant_or_runs_as_the_models_own_code_in_chunks(name, scale, tmp_path, monkeypatch):
    speaker = make(save_llm(tmp_path, FAMILIES[name]()))
    assert speaker.head.scale == (scale if scale is None else pytest.approx(scale, rel=1e-6))
    prefix, tokens, mask, _ = sampled(speaker)
    whole, parts, sizes = prefix.clone().requires_grad_(), prefix.clone().requires_grad_(), []
    speaker.logprobs(whole, tokens, mask).sum().backward()
    own = head.Head.logits
    monkeypatch.setattr(head, "HEAD_BATCH", 7)
    monkeypatch.setattr(head.Head, "logits", lambda self, hidden: sizes.append(len(hidden)) or own(self, hidden))
    speaker.logprobs(parts, tokens, mask).sum().backward()
    assert (whole.grad - parts.grad).norm() <= 1e-5 * whole.grad.norm() > 0
    assert (not sizes) if scale else max(sizes) == 7


# --- the fast decoder ---

def both(folder: Path, **keys: object) -> tuple[Speaker, Speaker]:
    lean, general = make(folder, **keys), make(folder, **keys)
    assert isinstance(lean.decoder, LlamaDecoder)
    general.decoder = HfDecoder(general.llm)
    return lean, general


def same(lean: Speaker, general: Speaker) -> None:
    prefix, tokens, mask, logp = sampled(lean)
    general.eos = lean.eos
    for mine, theirs in zip(lean.sample(prefix, draw(24, T)), general.sample(prefix, draw(24, T)), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)
    slopes = []
    for speaker in (lean, general):
        p = prefix.clone().requires_grad_()
        close(speaker.logprobs(p, tokens, mask), logp)
        speaker.logprobs(p, tokens, mask).sum().backward()
        slopes.append(p.grad)
    assert (slopes[0] - slopes[1]).norm() <= 1e-4 * slopes[1].norm() > 0


@pytest.mark.parametrize("kind", ["default", *ROPES])
def test_the_fast_decoder_equals_hugging_faces_for_each_rope(kind, tmp_path):
    config = llama(kind)
    config.head_dim = 16  # as wide as the factors of longrope
    same(*both(save_llm(tmp_path, config), prefix=(max_positions(config) or 64) - T - 1))  # all positions


@pytest.mark.parametrize("kind", ["default", "dynamic", "longrope"])
def test_the_fast_decoder_runs_more_than_1024_positions(kind, tmp_path):
    config = hf.LlamaConfig(**MODERN | {"max_position_embeddings": 4096},
                            rope_parameters=rope(kind) | {"original_max_position_embeddings": 2048})
    same(*both(save_llm(tmp_path, config), prefix=1100))


@pytest.mark.parametrize("config", [
    hf.LlamaConfig(**MODERN, attention_bias=True), hf.LlamaConfig(**MODERN, mlp_bias=True),
    hf.LlamaConfig(**MODERN, hidden_act="gelu"), hf.MistralConfig(**MODERN), hf.Qwen3Config(**MODERN)],
    ids=["attention bias", "mlp bias", "gelu", "mistral", "qwen3"])
def test_the_fast_decoder_refuses_what_it_does_not_compute(config, tmp_path):
    assert isinstance(make(save_llm(tmp_path, config)).decoder, HfDecoder)


# --- refusals ---

def refusal(folder: Path, **keys: object) -> str:
    with pytest.raises(DixitError) as caught:
        make(folder, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


STATE = "no key-value cache, or a recurrent state"
UNFIT = {
    "mamba": (lambda: hf.MambaConfig(vocab_size=V, hidden_size=32, num_hidden_layers=2), STATE),
    "rwkv": (lambda: hf.RwkvConfig(vocab_size=V, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2), STATE),
    "recurrent_gemma": (lambda: hf.RecurrentGemmaConfig(**MODERN | {"num_hidden_layers": 3}), STATE),
    "qwen3_next": (lambda: hf.Qwen3NextConfig(**MODERN | {"num_hidden_layers": 4}, num_experts=4, head_dim=16,
                                              num_experts_per_tok=2, linear_num_key_heads=2,
                                              linear_num_value_heads=2), STATE),
    "lfm2": (lambda: hf.Lfm2Config(**MODERN, full_attn_idxs=[1]), STATE),
    "gemma4_text": (lambda: hf.Gemma4TextConfig(**MODERN, hidden_size_per_layer_input=16, vocab_size_per_layer_input=V),
                    "`inputs_embeds` you provided do not exactly match the embedding weights"),
    "moshi": (lambda: hf.MoshiConfig(**MODERN, head_dim=16, ffn_dim=96, sliding_window=5),
              "after one more token differ"),
    "bert": (lambda: hf.BertConfig(**BASE, intermediate_size=128), "depend on the tokens that follow: no causal LM"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_model_that_the_speaker_cannot_run_right_is_one_line(name, tmp_path):
    make_config, reason = UNFIT[name]
    message = refusal(save_llm(tmp_path, make_config()))
    assert reason in message and f"({name})" in message and "speaker.llm" in message


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("part", "reason"), [("logits", "after a prefix"), ("extend", "after one more token")])
def test_a_decoder_that_computes_something_else_is_refused(part, reason, dtype, tmp_path, monkeypatch):
    folder = save_llm(tmp_path, FAMILIES["qwen3"]())
    own = getattr(HfDecoder, part)
    monkeypatch.setattr(HfDecoder, part, lambda self, *given: own(self, *given) * 1.5)
    assert reason in refusal(folder, dtype=dtype)


def test_the_check_runs_few_layers_and_leaves_all(tmp_path):
    folder = save_llm(tmp_path, hf.Gemma3TextConfig(**MODERN | {"num_hidden_layers": 5}, head_dim=16, sliding_window=5))
    speaker, plain = make(folder), hf.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert len(speaker.llm.model.layers) == 5
    prefix, tokens, mask, logp = sampled(speaker)
    close(logp, own_logp(plain, 1, prefix, tokens, mask).detach())


WITHOUT_WEIGHTS = {
    "positions": (lambda: hf.GPT2Config(**GPT), {"max_tokens": 61},
                  "has 64 positions, but start token, prefix and caption need 65; lower speaker.max_tokens or"),
    "rope positions": (lambda: llama("default"), {"prefix": 52}, "has 64 positions.*need 65"),
    "longrope": (lambda: llama("longrope"), {"prefix": 20}, "has 32 positions.*need 33"),
    "vocabulary": (lambda: hf.GPT2Config(**GPT | {"vocab_size": 119}), {},
                   "tokenizer of .* has token 119, but the LLM has embeddings for tokens 0 to 118 only"),
    "t5": (lambda: hf.T5Config(vocab_size=V), {}, "sequence-to-sequence model .t5.; choose a decoder-only"),
    "bart": (lambda: hf.BartConfig(vocab_size=V), {}, "sequence-to-sequence model .bart."),
    "vit": (lambda: hf.ViTConfig(), {}, "cannot load the LLM"),
    "dtype": (lambda: llama("default"), {"dtype": "float16"}, "speaker.dtype must be float32 or bfloat16"),
}


@pytest.mark.parametrize("name", WITHOUT_WEIGHTS)
def test_what_the_config_tells_is_refused_before_weights_are_read(name, tmp_path):
    make_config, keys, reason = WITHOUT_WEIGHTS[name]
    make_config().save_pretrained(tmp_path)
    save_tokenizer(tmp_path, bos_token="<s>", eos_token="</s>")
    assert re.search(reason, refusal(tmp_path, **keys))


def test_as_many_positions_as_needed_suffice_and_alibi_has_no_limit(tmp_path):
    make(save_llm(tmp_path / "gpt2", FAMILIES["gpt2"]()), max_tokens=60)
    make(save_llm(tmp_path / "bloom", FAMILIES["bloom"]()), max_tokens=3000)


def test_a_tokenizer_without_an_end_token_is_one_line(tmp_path):
    assert "no end-of-sequence token" in refusal(save_llm(tmp_path, FAMILIES["gpt2"](), bos_token="<s>"))


def test_a_token_added_to_the_tokenizer_alone_is_one_line(tmp_path):
    folder = save_llm(tmp_path, hf.GPT2Config(**GPT | {"vocab_size": 120}))
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<picture>"])
    tokenizer.save_pretrained(folder)
    assert "has token 120" in refusal(folder)


# --- LoRA's targets ---

@pytest.mark.parametrize(("name", "targets", "names"), [
    ("llama, default rope", (), {"q_proj", "v_proj"}), ("gpt2", (), {"c_attn"}), ("smollm3", (), {"q_proj", "v_proj"}),
    ("llama, default rope", ("k_proj",), {"k_proj"})])
def test_lora_goes_where_peft_puts_it_or_where_the_config_says(name, targets, names, tmp_path):
    speaker = make(save_llm(tmp_path, FAMILIES[name]()), lora_rank=2, lora_targets=targets)
    found = {n.removeprefix("lora.").split("_lora_")[0] for n in speaker.trained.state_dict() if n.startswith("lora.")}
    assert len(found) == 2 * len(names) and all(any(n.endswith(name) for name in names) for n in found)


@pytest.mark.parametrize(("name", "targets", "wanted"), [
    ("gpt2", ("q_proj", "v_proj"), "has no module 'q_proj' for LoRA; set speaker.lora_targets.* c_attn, c_fc, c_proj"),
    ("qwen3", ("q_proj", "w_proj"), "has no module 'w_proj'.* down_proj, gate_proj, k_proj"),
    ("phi3", (), "has no module 'q_proj'.* qkv_proj"),
    ("qwen3", ("input_layernorm",), "cannot add LoRA to .* q_proj")])
def test_a_target_that_is_not_there_is_one_line_with_those_that_are(name, targets, wanted, tmp_path):
    message = refusal(save_llm(tmp_path, FAMILIES[name]()), lora_rank=2, lora_targets=targets)
    assert re.search(wanted, message), message


@pytest.mark.parametrize("part", ["layers.1.mlp.up_proj", "lm_head"])
def test_weights_that_lack_a_tensor_are_refused(part, tmp_path):
    from safetensors.torch import load_file, save_file

    path = save_llm(tmp_path, FAMILIES["qwen3"]()) / "model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if part not in k}, path, {"format": "pt"})
    assert re.search(f"lack 1 tensors of its config, e.g. .*{part}", refusal(tmp_path))


def test_a_folder_without_its_tokenizer_is_refused(tmp_path):
    for path in save_llm(tmp_path, FAMILIES["qwen3"]()).glob("tokenizer*"):
        path.unlink()
    assert "has special tokens only; its files are missing" in refusal(tmp_path)
