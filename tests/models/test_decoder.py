"""The decoder's fast paths: a static cache, compiled layers and CUDA graphs change neither captions nor gradients.

The plain path is held against Hugging Face's own in test_speaker.py.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator

import jaxtyping
import pytest
import torch

from dixit.common import DixitError
from dixit.config import SpeakerConfig
from dixit.models.decoder import MAX_STATIC_CACHES, LlamaDecoder
from dixit.models.speaker import Speaker

PATCHES, WIDTH, T = 5, 16, 6


@pytest.fixture(scope="module")
def settings(tiny) -> SpeakerConfig:
    return SpeakerConfig(llm=str(tiny.llm), prefix=3, width=32, layers=1, heads=2, max_tokens=T, compile="no")


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Annotations are not checked: the compiler would have to read what checks them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def prefixes(speaker: Speaker, images: int) -> torch.Tensor:
    return speaker.trained(draw(images, PATCHES, WIDTH).to(speaker.device) * 4 - 2)


def static(settings: SpeakerConfig) -> Speaker:
    """A speaker that samples with a static cache, on a CPU and without a compiler."""
    speaker = Speaker(settings, PATCHES, WIDTH)
    speaker.decoder = LlamaDecoder(speaker.llm)  # of its own
    speaker.decoder.static = True
    return speaker


def compiled(settings: SpeakerConfig, device: str = "cpu", **how: object) -> Speaker:
    """As speaker.compile yes has it on a GPU; the compiler is shown what lies under the checks of annotations."""
    speaker = Speaker(dataclasses.replace(settings, compile="yes"), PATCHES, WIDTH, device=device)
    decoder = speaker.decoder  # no other speaker has one with compile yes
    decoder.static = True
    decoder.project, decoder.attend = (torch.compile(inspect.unwrap(part).__get__(decoder), **how)
                                       for part in (LlamaDecoder._project, LlamaDecoder._attend))
    return speaker


def same_captions(plain: Speaker, fast: Speaker, images: int, draws: torch.Tensor | None,
                  temperature: float = 1.0) -> torch.Tensor:
    """Compare; the mask of the captions."""
    prefix = prefixes(plain, images).detach()
    (tokens, mask, logp), (other, other_mask, other_logp) = (
        s.sample(prefix, draws, temperature) for s in (plain, fast))
    assert torch.equal(tokens, other) and torch.equal(mask, other_mask)
    rtol = 1e-5 if plain.device.type == "cuda" else 0.0  # there batches of another size are summed in another order
    torch.testing.assert_close(logp, other_logp, atol=1e-5, rtol=rtol)
    return mask


def same_update(plain: Speaker, fast: Speaker, captions: int, images: int) -> None:
    """Compare log-probabilities and the gradients of every trained parameter."""
    tokens, mask, _ = plain.sample(prefixes(plain, images).detach(), draw(captions, T).to(plain.device))
    found = []
    for speaker in (plain, fast):
        logp = speaker.logprobs(prefixes(speaker, images), tokens, mask)
        speaker.trained.zero_grad()
        (logp.sum(1) * draw(captions, seed=1).to(logp.device)).sum().backward()
        found.append((logp.detach(), torch.cat([p.grad.flatten() for p in speaker.trained.parameters()])))
    (value, slope), (other, other_slope) = found
    torch.testing.assert_close(value, other, atol=1e-5, rtol=1e-5 if plain.device.type == "cuda" else 0.0)
    assert (slope - other_slope).norm() <= 1e-5 * slope.norm() > 0


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_static_cache_gives_the_same_captions(settings, temperature):
    plain, fast = Speaker(settings, PATCHES, WIDTH), static(settings)
    for captions, seed in ((40, 0), (8, 1), (40, 2)):  # the memory of the first batch serves the third
        mask = same_captions(plain, fast, 4, draw(captions, T, seed=seed), temperature)
        assert not mask.all()  # some captions end early, and are dropped from the plain batch
    same_captions(plain, fast, 4, None)


def test_captions_of_any_number_and_length_are_sampled_though_memory_is_kept_for_few(settings):
    plain, fast = Speaker(settings, PATCHES, WIDTH), static(settings)
    for captions in range(1, MAX_STATIC_CACHES + 3):
        same_captions(plain, fast, 1, draw(captions, 1 + captions % T, seed=captions))
    assert len(fast.decoder.static_caches) == MAX_STATIC_CACHES


def test_a_batch_that_is_not_finite_leaves_nothing_behind(settings):
    plain, fast = Speaker(settings, PATCHES, WIDTH), static(settings)
    _, _, logp = fast.sample(prefixes(fast, 2).detach() * torch.nan, draw(8, T))
    assert logp.isnan().any()
    same_captions(plain, fast, 2, draw(8, T))


def test_layers_traced_for_a_compiler_change_neither_captions_nor_gradients(settings, unchecked):
    plain, fast = Speaker(settings, PATCHES, WIDTH), compiled(settings, backend="aot_eager", fullgraph=True)
    for images in (2, 4):  # the second time sizes are symbols
        same_captions(plain, fast, images, draw(4 * images, T))
        same_update(plain, fast, 4 * images, images)


@pytest.mark.slow
def test_compiled_layers_change_neither_captions_nor_gradients(settings, unchecked):
    plain, fast = Speaker(settings, PATCHES, WIDTH), compiled(settings)
    same_captions(plain, fast, 2, draw(8, T))
    same_update(plain, fast, 8, 2)


def test_only_the_llama_family_without_lora_is_compiled(settings):
    with pytest.raises(DixitError, match="speaker.compile yes.*Llama.*use auto"):
        Speaker(dataclasses.replace(settings, compile="yes", lora_rank=2), PATCHES, WIDTH)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU with CUDA")
@pytest.mark.parametrize("layers", ["as they are", "compiled"])
def test_cuda_graphs_change_neither_captions_nor_gradients(settings, unchecked, layers):
    plain = Speaker(settings, PATCHES, WIDTH, device="cuda")
    fast = (Speaker(dataclasses.replace(settings, compile="auto"), PATCHES, WIDTH, device="cuda")
            if layers == "as they are" else compiled(settings, "cuda"))
    for captions, seed in ((40, 0), (8, 1), (40, 2)):  # the graph of the first batch is replayed for the third
        same_captions(plain, fast, 4, draw(captions, T, seed=seed).cuda())
    same_captions(plain, fast, 4, None)
    same_update(plain, fast, 8, 2)
    decoder = fast.decoder
    assert isinstance(decoder, LlamaDecoder) and len(decoder.static_caches) == 3  # 40, 8 and 4 captions
    with torch.no_grad():
        cache, _ = fast.prefill(prefixes(fast, 2))
        grown = decoder.expand(cache, torch.arange(8, device="cuda") // 4, room=T)
        torch.cuda.set_sync_debug_mode("error")  # a token waits for nothing
        try:
            decoder.extend(grown, torch.zeros(8, 1, dtype=torch.long, device="cuda"))
        finally:
            torch.cuda.set_sync_debug_mode("default")
