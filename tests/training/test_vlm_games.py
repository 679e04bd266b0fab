"""Games of a speaker that is a vision-language model, from training to evaluation, demo and export."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dixit.common import DixitError, read_json
from dixit.config import load_config
from dixit.data.images import load, pixels
from dixit.play.explain import caption_images
from dixit.training.checkpoints import trained_weights
from dixit.training.runs import load_run, make_listeners
from eval import commands, export
from tests.vlms import make_vlm

NOWHERE = "clip.name=/nowhere/eye"  # the speaker has no CLIP


@pytest.fixture(scope="module")
def vlms(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vlms")
    return {family: make_vlm(family, root / family) for family in ("idefics3", "qwen2_vl")}


def speaker(folder: Path, more: str = "") -> str:
    return f"speaker={{kind: vlm, llm: {folder}, width: 16, layers: 1, heads: 2, max_tokens: 6{more}}}"


@pytest.fixture(scope="module")
def vlm_run(tiny, vlms, train) -> Path:
    """A finished game with a KL cost; do not write into it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIXIT_CACHE", str(tiny.cache))
        patch.setenv("ACCELERATE_USE_CPU", "true")
        train(tiny.game_config, tiny.root / "runs" / "vlm", speaker(vlms["idefics3"]), NOWHERE, "game.kl_cost=0.01")
    return tiny.root / "runs" / "vlm"


def test_a_game_trains_the_adapter_and_a_resumed_one_equals_it(home, vlm_run, train, vlms, tmp_path):
    run = load_run(vlm_run)
    assert not run.base.outputs[1].weight.any() and run.speaker.trained.outputs[1].weight.any()
    shutil.copytree(vlm_run, tmp_path / "halves")
    shutil.rmtree(tmp_path / "halves" / "checkpoints" / "step_000004")  # stopped after two of four steps
    train(home.game_config, tmp_path / "halves", speaker(vlms["idefics3"]), NOWHERE, "game.kl_cost=0.01")
    whole, halves = (load_file(trained_weights(path)) for path in (vlm_run, tmp_path / "halves"))
    assert [key for key in whole if not torch.equal(whole[key], halves[key])] == []


@pytest.mark.parametrize("settings", [
    (", lora_rank: 2", "policy.algorithm=ppo", "policy.epochs=2"), ("", "policy.algorithm=dpo"),
    (", dtype: bfloat16", "policy.algorithm=self_critical")], ids=lambda settings: settings[1])
def test_lora_other_algorithms_and_precisions(home, vlms, train, tmp_path, settings):
    keys, *rules = settings
    train(home.game_config, tmp_path / "run", speaker(vlms["qwen2_vl"], keys), NOWHERE, "train.steps=2", *rules)
    weights = load_file(trained_weights(tmp_path / "run"))
    moved = [name for name, value in weights.items() if "lora_B" in name or name == "outputs.1.weight"
             if value.abs().max() > 0]
    assert len(moved) == (5 if "lora" in keys else 1)  # of two layers' q_proj and v_proj
    assert all(value.isfinite().all() for value in weights.values())
    assert (load_run(tmp_path / "run").base is None) == ("lora" in keys)


def test_captions_are_a_warm_start_where_the_prompt_is_not_enough(home, vlms, train, tmp_path):
    train(home.caption_config, tmp_path / "captions", speaker(vlms["qwen2_vl"]), NOWHERE, "train.steps=2")
    train(home.game_config, tmp_path / "run", speaker(vlms["qwen2_vl"], f", init: {tmp_path / 'captions'}"), NOWHERE,
          "train.steps=1")
    first, base = load_run(tmp_path / "captions").speaker.trained, load_run(tmp_path / "run").base
    assert torch.equal(first.outputs[1].weight, base.outputs[1].weight)


def test_a_run_is_evaluated_captions_files_and_listens(home, vlm_run, tmp_path, monkeypatch):
    run = load_run(vlm_run)
    dataset = load(run.config.data, "test")
    image = pixels(dataset, [5])
    Image.fromarray(image[0].permute(1, 2, 0).numpy()).save(tmp_path / "image.png")
    said = run.caption(tmp_path / "image.png")
    spoken = caption_images(run, image, samples=2)  # of the demo, the browser and the cards
    assert spoken["trained"][0][0][0] == said and len(spoken["base"][0]) == 3
    shutil.copytree(vlm_run, tmp_path / "run")
    monkeypatch.setattr("sys.argv", ["evaluate", str(tmp_path / "run"), "eval.images=8"])
    commands.evaluate()
    figures = read_json(tmp_path / "run" / "results.json")["figures"]
    assert figures["trained"]["perplexity"]["mean"] > 1
    assert figures["base"]["kl_to_base"]["mean"] == pytest.approx(0, abs=1e-3)
    listener, = make_listeners((load_config(home.game_config, [
        f"listeners=[{{name: reads, kind: captioner, perception: grey, model: {vlm_run}}}]"]).listeners), dataset)
    candidates = torch.tensor([[5, 1, 2], [0, 5, 2]])
    patches = run.eyes.patches(image, "grey")
    tokens, mask = run.speaker.encode(["a red ring"])
    wanted = run.speaker.logprobs(run.speaker.trained(patches), tokens, mask).sum().item()
    logits = listener.score(["a red ring"] * 2, candidates)
    assert [float(logits[0, 0]), float(logits[1, 1])] == pytest.approx([wanted] * 2, rel=3e-3)


def test_a_run_is_transferred_to_a_folder_and_exported(home, vlm_run, vlms, folder_of_cards, tmp_path, monkeypatch):
    run = shutil.copytree(vlm_run, tmp_path / "run")
    monkeypatch.setattr("sys.argv", ["transfer", str(run), "--data", f"folder:{folder_of_cards}", "--pools", "1",
                                     "eval.images=12"])
    commands.transfer()
    assert (run / "transfer.json").is_file()
    export.export(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "on the vision tokens of a frozen vision-language model" in card and "CLIP that the speaker" not in card
    assert 'load_run("out", ["speaker.llm=PATH"])' in card
    image = tmp_path / "out" / "example_1.png"
    opened = load_run(tmp_path / "out", [f"speaker.llm={vlms['idefics3']}"])
    assert opened.caption(image) == load_run(run).caption(image)
    with pytest.raises(DixitError, match="cannot use the vision-language model"):
        load_run(tmp_path / "out")
