"""Listeners that are vision-language models: their logits are those of the model's own forward pass."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dixit.common import DixitError
from dixit.config import DataConfig, ListenerConfig
from dixit.data.images import load, pixels
from dixit.models.listeners import score_all
from dixit.models.perception import perceive
from dixit.models.vlm import VlmCaptioner, load_vlm, shared_vlm
from dixit.training.runs import make_listeners
from tests.vlms import FAMILIES, make_vlm, own_logp

TEXTS = ["A red circle.", "A red circle and a big ring.", "A red ring.", "", "two"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vlms")
    return {family: make_vlm(family, root / family) for family in FAMILIES}


@pytest.fixture(scope="module")
def dataset(tiny):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIXIT_CACHE", str(tiny.cache))
        return load(DataConfig(name="scenes", image_size=32, train=64, validation=24, test=24, combos=8), "validation")


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_models_own(home, folders, dataset, family):
    prompt = "Describe the image in one short sentence."
    config = ListenerConfig("reader", kind="vlm", model=str(folders[family]), prompt=prompt)
    plain, grey = make_listeners((config, dataclasses.replace(config, perception="grey")), dataset)
    assert plain.captioner.vlm is grey.captioner.vlm  # held once
    candidates = torch.from_numpy(np.random.default_rng(0).integers(0, 24, (len(TEXTS), 4)))
    logits = score_all([plain, grey], TEXTS, candidates)
    for i, text in enumerate(TEXTS[:2]):
        image = pixels(dataset, [int(candidates[i, 1])])
        seen = (perceive(image.float() / 255, "grey") * 255).round().byte()
        for mine, wanted in zip(logits[:, i, 1], (image, seen), strict=True):
            assert float(mine) == pytest.approx(own_logp(folders[family], wanted, prompt, text), rel=1e-4)
    assert logits[0, 0].std() > 1e-3 and logits[:, 3].tolist() == [[0.0] * 4] * 2
    assert not torch.allclose(logits[0, :2], logits[1, :2], atol=1e-3)
    again, = make_listeners((dataclasses.replace(config, length_normalised=True),), dataset)
    torch.testing.assert_close(again.score(TEXTS[:1], candidates[:1]), logits[0, :1] / 5, atol=1e-4, rtol=1e-4)


def test_the_chat_template_says_what_stands_before_a_caption(home, folders):
    front, between = load_vlm(str(folders["idefics3"])).chat("Describe it.")
    assert front.endswith("Describe it.<end_of_utterance>\nAssistant:") and between == " "
    front, between = load_vlm(str(folders["qwen2_vl"])).chat("")
    assert front.endswith("<|vision_end|><|im_end|>\n<|im_start|>assistant\n") and between == ""


@pytest.mark.parametrize("front", ["<s>", ""])
def test_a_prompt_has_one_start_token(home, folders, tmp_path, front):
    """Where the tokenizer adds it, and the chat template has it already or has not."""
    from PIL import Image
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folders["idefics3"])
    tokenizer = processor.tokenizer.backend_tokenizer
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    processor.chat_template = front + processor.chat_template
    processor.save_pretrained(shutil.copytree(folders["idefics3"], tmp_path / "starts"))
    vlm = load_vlm(str(tmp_path / "starts"))
    image = (torch.arange(3 * 32 * 32).reshape(3, 32, 32) % 256).byte()
    found = vlm.inputs(image[None], vlm.chat("Describe it.")[0])["input_ids"]
    turn = [{"type": "image", "image": Image.fromarray(image.permute(1, 2, 0).numpy())},
            {"type": "text", "text": "Describe it."}]
    wanted = processor.apply_chat_template([{"role": "user", "content": turn}], add_generation_prompt=True,
                                           tokenize=True, return_dict=True, return_tensors="pt")["input_ids"]
    assert found.tolist() == wanted.tolist() and (found == 1).sum() == 1


def test_models_that_cannot_be_used_are_refused(home, folders, tmp_path, tiny):
    with pytest.raises(DixitError, match="cannot use the vision-language model .*/nothing"):
        load_vlm(str(tmp_path / "nothing"))
    with pytest.raises(DixitError, match="cannot use the vision-language model|no processor for images and text"):
        load_vlm(str(tiny.llm))
    for opens in load_vlm, shared_vlm:
        with pytest.raises(DixitError, match="no home folder ~no-such-user"):
            opens("~no-such-user/x")
    folder = Path(shutil.copytree(folders["llava"], tmp_path / "llava"))
    weights = load_file(folder / "model.safetensors")
    name = next(key for key in weights if "projector" in key or "layers.1" in key)
    save_file({key: value for key, value in weights.items() if key != name}, folder / "model.safetensors",
              metadata={"format": "pt"})
    with pytest.raises(DixitError, match="lack 1 tensors of its config"):
        load_vlm(str(folder))
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(DixitError, match="cannot use the vision-language model"):
        load_vlm(str(folder))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"auto_map": {"AutoConfig": "evil.Config"}}))
    (folder / "evil.py").write_text("raise SystemExit('remote code was run')")
    with pytest.raises(DixitError):
        load_vlm(str(folder))


def test_prompts_that_cannot_be_used_are_refused(home, folders, dataset):
    vlm = load_vlm(str(folders["idefics3"]))
    with pytest.raises(DixitError, match="cannot take its prompt with an image: .*; change the prompt"):
        VlmCaptioner(vlm, dataset, "colour", "Describe <image>.").prefill([0])
    vlm.processor.chat_template = "{{ messages[0].content[1].text.nothing.more }}"
    with pytest.raises(DixitError, match="the chat template of .* cannot take the prompt 'Describe it.': .*nothing"):
        VlmCaptioner(vlm, dataset, "colour", "Describe it.")
