"""The speaker: what it samples is what it scores, a shared prefix changes nothing, the LLM stays frozen."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dixit.common import DixitError
from dixit.config import SpeakerConfig
from dixit.models import half
from dixit.models.decoder import HfDecoder, LlamaDecoder
from dixit.models.head import TokenLogp
from dixit.models.llm import load_llm
from dixit.models.speaker import Speaker, sample_token
from dixit.training.checkpoints import load_weights

PATCHES, WIDTH, T = 5, 16, 6


@pytest.fixture(scope="module")
def settings(tiny) -> SpeakerConfig:
    return SpeakerConfig(llm=str(tiny.llm), prefix=3, width=32, layers=1, heads=2, max_tokens=T)


@pytest.fixture
def speaker(settings: SpeakerConfig) -> Speaker:
    return Speaker(settings, PATCHES, WIDTH)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def prefixes(speaker: Speaker, images: int = 4) -> torch.Tensor:
    return speaker.trained(draw(images, PATCHES, WIDTH) * 4 - 2)


def plain_logits(speaker: Speaker, prefix: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The textbook way: each caption behind its own start token and prefix, one forward pass, no cache.

    Row t of the result predicts token t; there is one row more than there are tokens.
    """
    words = speaker.llm.get_input_embeddings()
    repeated = prefix.repeat_interleave(len(tokens) // len(prefix), 0)
    start = words(torch.full((len(tokens), 1), speaker.start))
    logits = speaker.llm(inputs_embeds=torch.cat([start, repeated, words(tokens)], 1), use_cache=False).logits
    return logits[:, prefix.shape[1]:]


def plain_logprobs(speaker: Speaker, prefix: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    logp = plain_logits(speaker, prefix, tokens)[:, :-1].log_softmax(-1)
    return logp.gather(2, tokens[..., None]).squeeze(2) * mask


def both_decoders(settings: SpeakerConfig) -> tuple[Speaker, Speaker]:
    lean, general = Speaker(settings, PATCHES, WIDTH), Speaker(settings, PATCHES, WIDTH)
    assert isinstance(lean.decoder, LlamaDecoder)
    general.decoder = HfDecoder(general.llm)
    return lean, general


def scored(speaker: Speaker, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities, and the adapter's gradient as one vector."""
    logp = speaker.logprobs(prefixes(speaker), tokens, mask)
    (logp.sum(1) * draw(len(tokens), seed=1)).sum().backward()
    return logp.detach(), torch.cat([p.grad.flatten() for p in speaker.trained.parameters()])


def test_the_llama_decoder_equals_hugging_faces(settings):
    lean, general = both_decoders(settings)
    prefix, uniforms = prefixes(lean).detach(), draw(20, T)
    tokens, mask, logp = lean.sample(prefix, uniforms)
    other, other_mask, other_logp = general.sample(prefix, uniforms)
    assert torch.equal(tokens, other) and torch.equal(mask, other_mask) and not mask.all()
    torch.testing.assert_close(logp, other_logp, atol=1e-5, rtol=0)
    (mine, slope), (theirs, other_slope) = scored(lean, tokens, mask), scored(general, tokens, mask)
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
    assert (slope - other_slope).norm() <= 1e-5 * other_slope.norm() > 0


def test_in_bfloat16_the_llama_decoder_is_as_near_to_float32_as_hugging_faces(settings):
    exact = Speaker(settings, PATCHES, WIDTH)
    lean, general = both_decoders(dataclasses.replace(settings, dtype="bfloat16"))
    tokens, mask, _ = exact.sample(prefixes(exact).detach(), draw(20, T))
    truth, slope = scored(exact, tokens, mask)
    errors = [[float((a - b).norm() / b.norm()) for a, b in zip(scored(s, tokens, mask), (truth, slope), strict=True)]
              for s in (lean, general)]
    assert all(mine < max(1.5 * theirs, 0.01) < 0.1 for mine, theirs in zip(*errors, strict=True)), errors


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_logp_equals_rescored_logp(speaker, temperature):
    prefix = prefixes(speaker).detach()
    tokens, mask, logp = speaker.sample(prefix, draw(80, T), temperature)
    again = speaker.logprobs(prefix, tokens, mask, temperature)
    assert mask.any() and not mask.all()  # some captions end early
    torch.testing.assert_close(again, logp * mask, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rows", [1024, 5])
def test_shared_prefix_equals_the_plain_path(speaker, rows):
    speaker.micro_batch = rows  # captions scored at once
    tokens, mask, _ = speaker.sample(prefixes(speaker).detach(), draw(12, T))
    weights = draw(12, tokens.shape[1], seed=1)
    gradients, values = [], []
    for path in (speaker.logprobs, lambda *given: plain_logprobs(speaker, *given)):
        value = path(prefixes(speaker), tokens, mask)
        speaker.trained.zero_grad()
        (value * weights).sum().backward()
        values.append(value.detach())
        gradients.append({n: p.grad.clone() for n, p in speaker.trained.named_parameters()})
    torch.testing.assert_close(values[0], values[1], atol=1e-5, rtol=0)
    whole = [torch.cat([g.flatten() for g in found.values()]).double() for found in gradients]
    assert whole[1].norm() > 0.1
    assert (whole[0] - whole[1]).norm() <= 1e-5 * whole[1].norm()


def test_equal_captions_of_an_image_share_a_pass_and_keep_their_own_gradients(speaker):
    tokens, mask, _ = speaker.sample(prefixes(speaker).detach(), draw(12, T))
    tokens[1], mask[1], tokens[2], mask[2] = tokens[0], mask[0], tokens[0], mask[0]
    tokens[3], mask[3] = tokens[0], mask[0]  # the same words about another image are another caption
    weights = draw(12, 1, seed=1)
    slopes = []
    for path in (speaker.logprobs, lambda *given: plain_logprobs(speaker, *given)):
        prefix = prefixes(speaker).detach().requires_grad_()
        value = path(prefix, tokens, mask)
        (value * weights).sum().backward()
        slopes.append(prefix.grad)
    assert value[0].sum() != value[3].sum()
    torch.testing.assert_close(slopes[0], slopes[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
def test_token_logp_equals_log_softmax_and_its_gradient(bias):
    weight, tokens = draw(700, 8) - 0.5, torch.arange(300) * 2
    offset = draw(700, seed=4) if bias else None
    upstream, slopes = draw(300, seed=2), []
    for fast in (True, False):
        hidden = (draw(300, 8, seed=1) * 4 - 2).requires_grad_()
        if fast:
            value = TokenLogp.apply(hidden, weight, offset, tokens, 0.7)
        else:
            logits = torch.nn.functional.linear(hidden, weight, offset) / 0.7
            torch.testing.assert_close(value, logits.log_softmax(-1)[torch.arange(300), tokens], atol=1e-5, rtol=0)
            value = logits.log_softmax(-1)[torch.arange(300), tokens]
        (value * upstream).sum().backward()
        slopes.append(hidden.grad)
    torch.testing.assert_close(slopes[0], slopes[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("vocabulary", [5, 256, 1000])
def test_pick_is_the_inverse_cdf(vocabulary):
    logits, uniforms = (draw(200, vocabulary) * 8).double(), draw(200, seed=1).double()
    token, logp = sample_token(logits, uniforms)
    cdf = logits.softmax(-1).cumsum(-1)
    expected = torch.searchsorted(cdf, uniforms[:, None]).squeeze(1)
    assert torch.equal(token, expected)
    torch.testing.assert_close(logp, logits.log_softmax(-1).gather(1, token[:, None]).squeeze(1))
    assert torch.equal(sample_token(logits, None)[0], logits.argmax(-1))


def test_prefix_gradient_agrees_with_a_finite_difference(speaker):
    prefix = prefixes(speaker, 1).detach()
    tokens, mask, _ = speaker.sample(prefix, draw(3, T))
    prefix.requires_grad_()
    speaker.logprobs(prefix, tokens, mask).sum().backward()
    direction = prefix.grad / prefix.grad.norm()
    step = 1e-2 * float(prefix.detach().std())
    with torch.no_grad():
        up, down = (speaker.logprobs(prefix + s * step * direction, tokens, mask).double().sum() for s in (1, -1))
    assert float((up - down) / (2 * step)) == pytest.approx(float(prefix.grad.norm()), rel=0.01)


def test_masked_places_count_nothing(speaker):
    prefix = prefixes(speaker).detach()
    tokens, mask, _ = speaker.sample(prefix, draw(12, T))
    changed = torch.where(mask, tokens, 0)
    before, after = (speaker.logprobs(prefix, t, mask) for t in (tokens, changed))
    assert torch.equal(before, after) and (before[~mask] == 0).all() and (before[mask] < 0).all()


def test_same_uniforms_same_captions_in_one_batch_or_two(speaker):
    prefix, uniforms = prefixes(speaker).detach(), draw(12, T)
    said = speaker.decode(*speaker.sample(prefix, uniforms)[:2])
    assert said == speaker.decode(*speaker.sample(prefix, uniforms)[:2])
    halves = [speaker.decode(*speaker.sample(prefix[i:i + 2], uniforms[3 * i:3 * i + 6])[:2]) for i in (0, 2)]
    assert halves[0] + halves[1] == said
    assert speaker.decode(*speaker.sample(prefix, draw(12, T, seed=9))[:2]) != said


@pytest.mark.parametrize("check_every", [2, 4, 100])
def test_when_finished_captions_are_dropped_changes_nothing(speaker, check_every):
    prefix, uniforms = prefixes(speaker).detach(), draw(40, T)
    wanted = speaker.sample(prefix, uniforms)
    speaker.check_every = check_every
    for mine, theirs in zip(speaker.sample(prefix, uniforms), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=0)
    assert not wanted[1].all()


def test_captions_end_with_one_end_token_or_are_cut(speaker):
    tokens, mask, _ = speaker.sample(prefixes(speaker).detach(), draw(400, T))
    for row, keep in zip(tokens, mask, strict=True):
        length = int(keep.sum())
        assert keep[:length].all() and not keep[length:].any()
        ends = (row[keep] == speaker.eos).nonzero().flatten().tolist()
        assert ends == [length - 1] or (ends == [] and length == T)
        assert (row[~keep] == speaker.eos).all()


def test_greedy_takes_the_likeliest_token_each_time(speaker):
    prefix = prefixes(speaker).detach()
    tokens, mask, _ = speaker.sample(prefix)
    best = plain_logits(speaker, prefix, tokens)[:, :-1].argmax(-1)
    assert torch.equal(best[mask], tokens[mask])
    assert mask[:, 0].all() and tokens.shape[0] == len(prefix)


def test_a_prefix_that_has_run_serves_sampling_and_update(settings):
    for speaker in both_decoders(settings):
        prefix, uniforms = prefixes(speaker), draw(8, T)
        run = speaker.prefill(prefix)
        tokens, mask, sampled = speaker.sample(prefix.detach(), uniforms, run=run)
        logp = speaker.logprobs(prefix, tokens, mask, run=run)
        again, *_ = speaker.sample(prefix.detach(), uniforms)
        alone = speaker.logprobs(prefix, tokens, mask)
        torch.testing.assert_close(tokens, again)
        torch.testing.assert_close(logp, alone, atol=1e-5, rtol=0)
        torch.testing.assert_close(sampled, alone.detach(), atol=1e-4, rtol=1e-4)
        slope, wanted = (torch.autograd.grad((x * draw(*x.shape)).sum(), prefix, retain_graph=True)[0]
                         for x in (logp, alone))
        assert float((slope - wanted).norm() / wanted.norm()) < 1e-5


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_samples_follow_the_softmax(speaker, temperature):
    """Chi-square of the first token, and of the second one after a fixed first one: 5 deviations are the bound."""
    n, prefix = 20_000, prefixes(speaker, 1).detach()
    uniforms = draw(n, 2, seed=3)
    first = speaker.sample(prefix, uniforms[:, :1], temperature)[0][:, 0]
    fixed = uniforms.clone()
    fixed[:, 0] = 0.5
    pair, pair_mask, _ = speaker.sample(prefix, fixed, temperature)
    assert len(pair[:, 0].unique()) == 1 and pair_mask.all()  # the one first token is not the end token
    logits = plain_logits(speaker, prefix, pair[:1, :1])[0].detach()
    for row, seen in zip(logits, (first, pair[:, 1]), strict=True):
        expected = (row.double() / temperature).softmax(-1) * n
        counts = torch.bincount(seen, minlength=len(expected)).double()
        usual = expected >= 5  # the rare tokens together are one more cell
        expected = torch.cat([expected[usual], expected[~usual].sum()[None]]).clamp(min=1e-9)
        counts = torch.cat([counts[usual], counts[~usual].sum()[None]])
        freedom = len(counts) - 1
        assert freedom >= 5
        assert float(((counts - expected) ** 2 / expected.clamp(min=1)).sum()) < freedom + 5 * (2 * freedom) ** 0.5


def test_the_extreme_draws_give_tokens_of_the_vocabulary(speaker):
    edge = torch.tensor([[0.0], [1.0 - 2**-24], [1.0]]).expand(3, T).contiguous()
    tokens, mask, logp = speaker.sample(prefixes(speaker, 1).detach(), edge)
    assert tokens.min() >= 0 and tokens.max() < speaker.llm.config.vocab_size and logp.isfinite().all()


def test_no_parameter_of_the_llm_gets_a_gradient(speaker):
    prefix = prefixes(speaker)
    tokens, mask, _ = speaker.sample(prefix.detach(), draw(4, T))
    speaker.logprobs(prefix, tokens, mask).sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in speaker.llm.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in speaker.trained.parameters())


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="a CPU without oneDNN's bfloat16")
def test_products_by_way_of_float32_are_those_of_bfloat16(settings, monkeypatch):
    monkeypatch.setattr(half, "PART", 50)  # of the 64 to 256 rows of the tiny LLM's weights
    speaker = Speaker(dataclasses.replace(settings, dtype="bfloat16"), PATCHES, WIDTH)
    tokens, mask, _ = speaker.sample(prefixes(speaker).detach(), draw(20, T))
    found = []
    for rows in half.NEVER, 2:
        monkeypatch.setattr(half, "ROWS", rows)
        found.append(scored(speaker, tokens, mask))
        speaker.trained.zero_grad()
    (logp, gradient), (other, other_gradient) = found
    torch.testing.assert_close(other, logp, atol=0.1, rtol=0.02)
    assert float(torch.cosine_similarity(gradient, other_gradient, dim=0)) > 0.99
    x, weight = draw(5, 64).bfloat16(), draw(128, 64, seed=1).bfloat16()
    torch.testing.assert_close(half.wide_product(x, weight), x @ weight.t(), atol=0, rtol=0.01)


def test_bfloat16_is_close_and_trains_the_same_parameters(settings):
    wide = Speaker(settings, PATCHES, WIDTH)
    half = Speaker(dataclasses.replace(settings, dtype="bfloat16"), PATCHES, WIDTH)
    prefix = prefixes(half)
    tokens, mask, sampled = half.sample(prefix.detach(), draw(4, T))
    again = half.logprobs(prefix.detach(), tokens, mask)
    torch.testing.assert_close(again, sampled * mask, atol=0.1, rtol=0.05)
    logp = half.logprobs(prefix, tokens, mask)
    torch.testing.assert_close(logp.detach(), wide.logprobs(prefix, tokens, mask).detach(), atol=0.1, rtol=0.05)
    logp.sum().backward()
    assert all(p.dtype == torch.float32 and p.grad is not None for p in half.trained.parameters())


def test_lora_trains_adapter_and_lora_only(settings):
    plain = Speaker(settings, PATCHES, WIDTH)
    speaker = Speaker(dataclasses.replace(settings, lora_rank=2), PATCHES, WIDTH)
    before = {n: p.detach().clone() for n, p in speaker.llm.named_parameters()}
    tokens, mask, logp = speaker.sample(prefixes(speaker).detach(), draw(8, T))
    again = plain.sample(prefixes(plain).detach(), draw(8, T))
    assert torch.equal(tokens, again[0])  # LoRA begins as no change
    for _ in range(2):  # LoRA's first half has no gradient before its second half has moved
        optimizer = torch.optim.SGD(speaker.trained.parameters(), lr=0.1)
        speaker.logprobs(prefixes(speaker), tokens, mask).sum().backward()
        optimizer.step()
    changed = {n for n, p in speaker.llm.named_parameters() if not torch.equal(p, before[n])}
    lora = {n for n in before if "lora_" in n}
    assert changed == lora and len(lora) == 8  # 2 layers x (q, v) x (A, B)
    assert len([n for n in speaker.trained.state_dict() if n.startswith("lora.")]) == 8
    moved = speaker.logprobs(prefixes(speaker), tokens, mask)
    assert (moved - logp * mask).abs().max() > 1e-4


@pytest.mark.parametrize("rank", [0, 2])
def test_save_and_load_gives_the_same_speaker(settings, tmp_path, rank):
    from safetensors.torch import save_file

    first, second = (Speaker(dataclasses.replace(settings, lora_rank=rank), PATCHES, WIDTH, seed=s) for s in (0, 1))
    with torch.no_grad():
        for p in first.trained.parameters():
            p.add_(0.05)
    patches = draw(4, PATCHES, WIDTH)
    tokens, mask = first.encode(["a big red circle", "blue"] * 2)
    scored = [s.logprobs(s.trained(patches), tokens, mask).detach() for s in (first, second)]
    assert not torch.allclose(*scored)
    save_file(first.trained.state_dict(), tmp_path / "model.safetensors")
    load_weights(second.trained, tmp_path / "model.safetensors")
    assert torch.equal(second.logprobs(second.trained(patches), tokens, mask), scored[0])


def test_a_checkpoint_of_another_architecture_is_refused(settings, tmp_path):
    from safetensors.torch import save_file

    saved, small = tmp_path / "model.safetensors", Speaker(settings, PATCHES, WIDTH)
    save_file(small.trained.state_dict(), saved)
    for other in (dataclasses.replace(settings, width=48), dataclasses.replace(settings, layers=2)):
        with pytest.raises(DixitError, match="another architecture"):
            load_weights(Speaker(other, PATCHES, WIDTH).trained, saved)
    with pytest.raises(DixitError, match="no checkpoint"):
        load_weights(small.trained, tmp_path / "absent.safetensors")
    saved.write_bytes(saved.read_bytes()[:-10])
    with pytest.raises(DixitError, match="damaged"):
        load_weights(small.trained, saved)


def test_a_missing_llm_is_one_line(tmp_path):
    with pytest.raises(DixitError) as caught:
        load_llm(str(tmp_path / "nothing"))
    assert "nothing" in str(caught.value) and "\n" not in str(caught.value)


def test_speakers_of_any_prefix_and_length_share_an_llm(settings, speaker):
    longer = Speaker(dataclasses.replace(settings, prefix=9, max_tokens=20), PATCHES, WIDTH)
    assert longer.llm is speaker.llm and longer.decoder is speaker.decoder and longer.frozen.positions == 30
    uniforms = draw(4, 20)
    tokens, mask, logp = longer.sample(prefixes(longer), uniforms)
    torch.testing.assert_close(plain_logprobs(longer, prefixes(longer), tokens, mask), logp, atol=1e-4, rtol=1e-4)
    with pytest.raises(DixitError, match="has 128 positions, but start token, prefix and caption need 141"):
        Speaker(dataclasses.replace(settings, prefix=120, max_tokens=20), PATCHES, WIDTH)


def test_a_caption_ends_before_an_end_token_that_is_not_special(speaker):
    words = speaker.tokenizer("A red circle.", add_special_tokens=False)["input_ids"]
    speaker.eos = words[-1]
    assert speaker.decode(torch.tensor([words]), torch.ones(1, len(words), dtype=torch.bool)) == ["A red circle"]


def test_a_device_that_is_not_there_is_one_line(settings):
    with pytest.raises(DixitError, match="the speaker cannot run the LLM"):
        Speaker(settings, PATCHES, WIDTH, device="cuda:99")


def test_encode_and_decode_are_inverse_and_cut_at_max_tokens(speaker):
    texts = ["a big red circle", "blue", "a small green star at the top left"]
    tokens, mask = speaker.encode(texts)
    assert mask.sum(1).tolist() == [5, 2, T] and (tokens[:, -1] == speaker.eos).all()
    assert speaker.decode(tokens, mask) == [*texts[:2], "a small green star at"]


def test_the_audience_changes_the_prefix_and_only_if_asked_for(settings):
    speaker = Speaker(dataclasses.replace(settings, audience_width=2), PATCHES, WIDTH)
    patches = draw(2, PATCHES, WIDTH)

    def prefixes() -> list[torch.Tensor]:
        return [speaker.trained(patches, torch.tensor([c] * 2)) for c in ([1.0, 0.0], [0.0, 1.0])]

    assert torch.equal(*prefixes())  # its map is 0 at first
    with torch.no_grad():
        speaker.trained.audience.weight.copy_(draw(*speaker.trained.audience.weight.shape))
    assert not torch.allclose(*prefixes())
    assert Speaker(settings, PATCHES, WIDTH).trained.audience is None


def test_say_gives_the_greedy_caption_and_then_samples(speaker):
    patches = draw(3, PATCHES, WIDTH)
    rows = speaker.caption(patches, samples=2, seed=5)
    assert [len(row) for row in rows] == [3, 3, 3]
    assert [row[0] for row in rows] == [row[0] for row in speaker.caption(patches)]
    assert rows == speaker.caption(patches, samples=2, seed=5) != speaker.caption(patches, samples=2, seed=6)
