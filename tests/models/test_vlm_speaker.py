"""Speakers that are vision-language models: at first they say what the model itself says, and gradients are exact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dixit.common import DixitError
from dixit.config import DataConfig, SpeakerConfig
from dixit.data.images import load, pixels
from dixit.models.features import patch_features
from dixit.models.vlm import shared_vlm
from dixit.models.vlm_speaker import VlmEyes, VlmSpeaker
from tests.vlms import FAMILIES, make_vlm, own_inputs, own_logp

PROMPT = "Describe the image."


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vlms")
    return {family: make_vlm(family, root / family) for family in FAMILIES}


@pytest.fixture
def dataset(home):
    return load(DataConfig(name="scenes", image_size=32, train=64, validation=24, test=24, combos=8), "validation")


def make_speaker(folder: Path, size: int = 32, **keys: Any) -> VlmSpeaker:
    settings = {"width": 16, "layers": 1, "heads": 2, "max_tokens": 6} | keys
    return VlmSpeaker(SpeakerConfig(kind="vlm", llm=str(folder), prompt=PROMPT, **settings), size)


def moved(speaker: VlmSpeaker) -> VlmSpeaker:
    """The speaker with an adapter that changes the vision tokens, and LoRA, if any, that changes the model."""
    with torch.no_grad():
        for name, parameter in speaker.trained.named_parameters():
            if name.startswith("outputs.1") or "lora_B" in name:
                parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.2
    return speaker


@pytest.mark.parametrize("family", FAMILIES)
def test_before_training_it_says_what_the_model_itself_says(folders, dataset, family):
    speaker, image = make_speaker(folders[family]), pixels(dataset, [3])
    patches = speaker.eyes.patches(image, "colour")
    assert torch.equal(speaker.trained(patches), patches)
    model, inputs = own_inputs(folders[family], image, PROMPT)
    said = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1]:].tolist()
    tokens, mask, _ = speaker.sample(patches)
    assert tokens[0, mask[0]].tolist() == said
    assert speaker.caption(patches) == [speaker.decode(torch.tensor([said]), torch.ones(1, len(said)).bool())]
    text = "A red circle."
    mine = speaker.logprobs(patches, *speaker.encode([text])).sum()
    assert mine.item() == pytest.approx(own_logp(folders[family], image, PROMPT, text), rel=1e-4)
    cached = torch.from_numpy(np.array(patch_features(speaker.eyes, dataset, "grey")[[3]], dtype=np.float32))
    torch.testing.assert_close(cached, speaker.eyes.patches(image, "grey"), atol=2e-3, rtol=2e-3)
    assert not torch.allclose(cached, patches, atol=1e-2)


def test_a_caption_ends_as_the_chat_template_ends_a_turn(folders, dataset, tmp_path):
    """Of the two end tokens of the model, as in Gemma 3, the second."""
    from transformers import AutoProcessor, GenerationConfig

    folder = Path(shutil.copytree(folders["idefics3"], tmp_path / "two_ends"))
    processor = AutoProcessor.from_pretrained(folder)
    processor.chat_template = processor.chat_template.replace("<end_of_utterance>", " and")
    processor.save_pretrained(folder)
    end = processor.tokenizer.convert_tokens_to_ids("and")
    GenerationConfig(eos_token_id=[2, end], pad_token_id=2).save_pretrained(folder)
    speaker = make_speaker(folder, max_tokens=20)
    for image in pixels(dataset, [1, 2]).split(1):
        model, inputs = own_inputs(folder, image, PROMPT)
        said = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1]:].tolist()
        tokens, mask, _ = speaker.sample(speaker.eyes.patches(image, "colour"))
        assert tokens[0, mask[0]].tolist() == said and said[-1] == end
    assert speaker.eyes.vlm.token_rows(["a red ring"])[0][-1] == end == speaker.eos


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_plain_forward_pass(folders, dataset, family):
    """Sampled captions, their log-probabilities, and the gradients to adapter and LoRA, without cache and our code."""
    speaker = moved(make_speaker(folders[family], lora_rank=2))
    patches = speaker.eyes.patches(pixels(dataset, range(2)), "colour")
    draws = torch.rand(4, 6, generator=torch.Generator().manual_seed(1))
    prefix = speaker.trained(patches)
    tokens, mask, sampled = speaker.sample(prefix.detach(), draws, temperature=0.7)
    logp = speaker.logprobs(prefix, tokens, mask, temperature=0.7)
    torch.testing.assert_close(logp.detach(), sampled, atol=1e-4, rtol=1e-4)
    weights = torch.rand(logp.shape, generator=torch.Generator().manual_seed(2)) * mask
    parameters = dict(speaker.trained.named_parameters())
    mine = torch.autograd.grad((logp * weights).sum(), list(parameters.values()))
    inputs = speaker.eyes.inputs(speaker.trained(patches).repeat_interleave(2, 0))
    before = inputs["input_ids"].shape[1]
    for key, value in inputs.items():
        if isinstance(value, torch.Tensor) and value.shape == (4, before):
            more = tokens if key == "input_ids" else torch.full_like(tokens, int(key == "attention_mask"))
            inputs[key] = torch.cat([value, more], 1)
    logits = speaker.llm(**inputs, use_cache=False).logits[:, before - 1:-1] / 0.7
    plain = logits.log_softmax(-1).gather(2, tokens[..., None]).squeeze(2) * mask
    torch.testing.assert_close(logp, plain, atol=5e-5, rtol=5e-5)
    wanted = torch.autograd.grad((plain * weights).sum(), list(parameters.values()))
    for name, one, other in zip(parameters, mine, wanted, strict=True):
        assert float((one - other).norm()) <= 1e-5 * float(other.norm()), name
        assert other.norm() > 0, name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_alone_is_scored_without_an_image(folders, dataset, family):
    speaker = make_speaker(folders[family])
    speaker.caption(speaker.eyes.patches(pixels(dataset, [0]), "colour"))  # whose positions must not linger
    tokens, mask = speaker.encode(["A red circle.", "a big ring"])
    whole = torch.cat([torch.full((2, 1), speaker.start), tokens], 1)
    logits = own_inputs(folders[family], pixels(dataset, [0]), PROMPT)[0](input_ids=whole).logits[:, :-1]
    wanted = logits.log_softmax(-1).gather(2, tokens[..., None]).squeeze(2) * mask
    torch.testing.assert_close(speaker.perplexity_logp(tokens, mask), wanted, atol=1e-4, rtol=1e-4)


def test_images_of_two_sizes_keep_their_own_positions(folders, dataset):
    """Of Qwen2-VL, whose prompts have more tokens for a larger image."""
    small, large = make_speaker(folders["qwen2_vl"]), make_speaker(folders["qwen2_vl"], size=64)
    assert small.frozen is large.frozen is shared_vlm(str(folders["qwen2_vl"]))  # held once, with listeners too
    image = pixels(dataset, [0])
    seen = [speaker.eyes.patches(image, "colour") for speaker in (small, large)]
    assert seen[0].shape[1] < seen[1].shape[1]
    tokens, _ = small.encode(["a red ring"])
    wanted = small.next_logp(seen[0], tokens)
    cache, _ = small.prefill(seen[0])
    large.prefill(seen[1])
    found = small.decoder.logits(small.decoder.extend(cache, tokens)[:, -1]).log_softmax(-1)
    torch.testing.assert_close(found, wanted)
    larger = image.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert small.eyes.patches(larger, "colour").shape == seen[0].shape and small.eyes.key != large.eyes.key


def test_the_key_of_vision_tokens_names_all_they_depend_on(folders, tmp_path):
    folder = Path(shutil.copytree(folders["llava"], tmp_path / "llava"))
    plain, moved_there = make_speaker(folders["llava"]).eyes, make_speaker(folder).eyes
    assert plain.key == moved_there.key == make_speaker(folder, lora_rank=2).eyes.key
    moved_there.vlm.decoder.body.register_parameter("image_newline", torch.nn.Parameter(torch.ones(32)))
    ended = VlmEyes(moved_there.vlm, PROMPT, 32)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"vision_feature_layer": -1}))
    assert len({plain.key, ended.key, make_speaker(folder).eyes.key}) == 3


def test_models_that_cannot_be_speakers_are_refused(folders, tiny, monkeypatch):
    with pytest.raises(DixitError, match="cannot use the vision-language model|no processor"):
        make_speaker(tiny.llm)
    with pytest.raises(DixitError, match="has 256 positions, but image and prompt need .* lower speaker.max_tokens"):
        make_speaker(folders["llava"], max_tokens=250)
    with pytest.raises(DixitError, match="has no module 'up' for LoRA"):
        make_speaker(folders["llava"], lora_rank=2, lora_targets=("up",))
    with pytest.raises(DixitError, match="cannot take its prompt with an image: .*; change the prompt"):
        VlmSpeaker(SpeakerConfig(kind="vlm", llm=str(folders["idefics3"]), prompt="Describe <image>."), 32)
    monkeypatch.setattr(VlmEyes, "patches", lambda self, *_: torch.ones(1, 16, 32))
    with pytest.raises(DixitError, match="cannot be a speaker, .* differ from those after pixels"):
        make_speaker(folders["llava"])
    monkeypatch.setattr(VlmEyes, "patches", lambda self, *_: torch.ones(1, 3, 32))
    with pytest.raises(DixitError, match="cannot be a speaker, for it does not run on given vision tokens"):
        make_speaker(folders["llava"])
