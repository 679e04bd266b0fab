"""One short test for each of 22 faults that people report of tools like this; fuller ones are named in the docstrings.

Two have no test here: 8, SIGTERM and Ctrl-C (tests/training/test_interrupts.py), and 12, keyboard and browser
(tests/play/test_browser.py).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import save_file

from dixit.common import DixitError
from dixit.config import DataConfig, SpeakerConfig, load_config
from dixit.data.decode import open_image
from dixit.data.images import load, pixels
from dixit.models.clip import load_clip
from dixit.models.features import patch_features
from dixit.models.speaker import Speaker

SHAPE = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": 1,
         "eos_token_id": 1, "pad_token_id": 0, "max_position_embeddings": 64}
LLAMA = {"intermediate_size": 64, "num_key_value_heads": 2, "initializer_range": 0.15}


def llm(tiny, folder: Path, config: hf.PretrainedConfig) -> Path:
    """A random LLM with the tokenizer of the tiny one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    hf.AutoTokenizer.from_pretrained(tiny.llm).save_pretrained(folder)
    return folder


def speaker(folder: Path, **keys: object) -> Speaker:
    return Speaker(SpeakerConfig(**{"llm": str(folder), "prefix": 3, "width": 32, "layers": 1, "heads": 2,
                                    "max_tokens": 12, **keys}), 4, 16)


def is_own(mine: Speaker, folder: Path) -> None:
    """The speaker's log-probabilities are those of the model's own forward pass."""
    plain = hf.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = torch.arange(2, 8)[None]
    wanted = plain(torch.cat([torch.tensor([[mine.start]]), tokens], 1)).logits[:, :-1].log_softmax(-1)
    found = mine.perplexity_logp(tokens, torch.ones_like(tokens).bool())
    torch.testing.assert_close(found, wanted.gather(2, tokens[..., None])[..., 0], atol=1e-4, rtol=0)


def of(root: Path, **keys: object) -> DataConfig:
    return DataConfig(name="folder", path=str(root), image_size=16, train=0, validation=0, test=0, **keys)


def photos(*paths: Path) -> None:
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * i, 40, 200)).save(path)


def captions(data: DataConfig) -> list[list[str]]:
    """Of all splits; a hash of few names leaves some of them empty."""
    found = []
    for split in ("train", "validation", "test"):
        try:
            found += load(data, split)["captions"][:]
        except DixitError as error:
            assert "is empty" in str(error)
    return sorted(found)


def refusal(call, *given: object, **keys: object) -> str:
    with pytest.raises(DixitError) as caught:
        call(*given, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def error_line(done) -> str:
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    line, = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    return line


@pytest.mark.parametrize("config", [
    hf.Gemma3TextConfig(**SHAPE, **LLAMA, head_dim=16),
    hf.GraniteConfig(**SHAPE, **LLAMA, embedding_multiplier=12.0, logits_scaling=8.0)], ids=["gemma3", "granite"])
def test_case_01_a_family_has_its_own_log_probabilities(tiny, tmp_path, config):
    """Every family: tests/models/test_families.py."""
    mine = speaker(llm(tiny, tmp_path, config))
    is_own(mine, tmp_path)
    spread = float(mine.llm.get_input_embeddings()(torch.arange(512)).std())
    assert float(mine.trained(torch.randn(2, 4, 16)).std()) == pytest.approx(spread, rel=0.1)


def test_case_02_lora_takes_the_targets_of_the_family(tiny, tmp_path):
    """Every family: test_families.test_lora_begins_as_no_change_and_gets_gradients."""
    llm(tiny, tmp_path, hf.GPT2Config(vocab_size=512, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    mine = speaker(tmp_path, lora_rank=2)
    assert any("c_attn" in name and "lora" in name for name, _ in mine.trained.named_parameters())
    assert "has no module 'q_proj' for LoRA" in refusal(speaker, tmp_path, lora_rank=2, lora_targets=("q_proj",))


def test_case_03_embeddings_narrower_than_the_states(tiny, tmp_path):
    llm(tiny, tmp_path, hf.OPTConfig(**SHAPE, ffn_dim=64, word_embed_proj_dim=16))
    mine = speaker(tmp_path)
    assert mine.llm_width == 16
    is_own(mine, tmp_path)


@pytest.mark.parametrize("kind, cells", [("resnet", 4), ("convnext", 4)])
def test_case_04_a_clip_that_is_no_vit_gives_its_grid(tmp_path, kind, cells):
    """Every family: tests/models/test_clip_kinds.py."""
    import open_clip

    vision = {"layers": [1, 1, 1, 1], "width": 16, "patch_size": None} if kind == "resnet" else {
        "timm_model_name": "convnext_atto", "timm_pool": "", "timm_model_pretrained": False, "timm_proj": "linear"}
    config = {"embed_dim": 32, "vision_cfg": {"image_size": 64, **vision},
              "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {"size": 64}}))
    made = open_clip.create_model(f"local-dir:{tmp_path}", load_weights=False)
    save_file({k: v.contiguous().clone() for k, v in made.state_dict().items()},
              tmp_path / "open_clip_model.safetensors")
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    try:
        clip = load_clip(str(tmp_path))
    except DixitError as error:  # refused in one line, as its pooling leaves a map
        assert kind == "convnext" and "\n" not in str(error) and str(tmp_path) in str(error)
        return
    assert clip.patches(images, "colour").shape[:2] == (2, cells)
    own = clip.model.encode_image(clip.preprocess(images, "colour"), normalize=True)
    torch.testing.assert_close(clip.embed_images(images, "colour"), own, atol=1e-5, rtol=0)


def test_case_05_a_caption_longer_than_the_llms_positions(tiny, command, tmp_path):
    line = error_line(command("scripts/train.py", tiny.caption_config, f"out={tmp_path}", "speaker.max_tokens=300"))
    assert "has 128 positions" in line and "need 304" in line


def test_case_06_a_negative_seed(tiny):
    assert "seed" in refusal(load_config, tiny.caption_config, ["seed=-1"])


def test_case_07_a_key_that_stands_twice(tiny, tmp_path):
    text = tiny.game_config.read_text() + "task: caption\n"
    (tmp_path / "twice.yaml").write_text(text)
    line = refusal(load_config, tmp_path / "twice.yaml", [])
    places = [i for i, row in enumerate(text.splitlines(), 1) if row.startswith("task:")]
    assert "task" in line and all(str(place) in line for place in places)


def test_case_09_a_tracker_that_is_not_there(tiny, command, tmp_path):
    line = error_line(command("scripts/train.py", tiny.caption_config, f"out={tmp_path / 'run'}",
                              "train.trackers=[nonsense]"))
    assert "nonsense" in line and not (tmp_path / "run").exists()


def test_case_10_captions_in_a_table_beside_the_images(home, tmp_path, capsys):
    """JSON lines and Parquet: tests/data/test_folder.py."""
    photos(*(tmp_path / f"p{i}.png" for i in range(3)))
    (tmp_path / "metadata.csv").write_text("file_name,text\np0.png,a cat\np1.png,a dog\ngone.png,a bird\n")
    assert captions(of(tmp_path)) == [["a cat"], ["a dog"]]
    found = capsys.readouterr().err
    assert "1 of 3 rows name no image" in found and "1 of 3 images have no caption" in found


def test_case_11_one_broken_image(home, tmp_path, capsys):
    photos(*(tmp_path / "train" / f"p{i}.png" for i in range(5)))
    (tmp_path / "train" / "p3.png").write_bytes(b"")
    assert "p3.png" in refusal(load, of(tmp_path), "train")
    assert len(load(of(tmp_path, broken="skip"), "train")) == 4
    found = capsys.readouterr().err
    assert "1 of 5 images cannot be read" in found and "p3.png" in found


def test_case_13_features_of_a_changed_clip_are_not_read(home, tmp_path):
    """All that the keys cover: test_clip_kinds.test_keys_change_with_everything_that_the_features_depend_on."""
    folder = Path(shutil.copytree(home.clip, tmp_path / "eye"))
    dataset = load(DataConfig(name="scenes", image_size=32, validation=8), "validation")
    for mean in (0.5, 0.1):
        path = folder / "open_clip_config.json"
        config = json.loads(path.read_text())
        config["preprocess_cfg"]["mean"] = [mean] * 3
        path.write_text(json.dumps(config))
        clip = load_clip(str(folder))
        cached = torch.from_numpy(np.array(patch_features(clip, dataset, "colour"))).float()
        torch.testing.assert_close(cached, clip.patches(pixels(dataset), "colour"), atol=2e-3, rtol=2e-3)


def test_case_14_a_byte_order_mark(home, tmp_path):
    """Other encodings: tests/data/test_captions.py."""
    photos(tmp_path / "cat.png")
    (tmp_path / "cat.txt").write_text("a cat", encoding="utf-8-sig")
    assert captions(of(tmp_path)) == [["a cat"]]


def test_case_15_a_tiff_of_floats(tmp_path):
    """Other ranges: tests/data/test_decode.py."""
    ramp = np.tile(np.linspace(0, 1, 32, dtype=np.float32), (32, 1))
    Image.fromarray(ramp).save(tmp_path / "ramp.tif")
    found = np.asarray(open_image(tmp_path / "ramp.tif", 32))
    assert np.array_equal(found, np.repeat((ramp * 255).round().astype(np.uint8)[..., None], 3, 2))


def test_case_16_class_folders_that_are_links(home, tmp_path):
    photos(*(tmp_path / "disk" / f"cat {i}.png" for i in range(4)), *(tmp_path / "photos/dogs" / f"dog {i}.png"
                                                                     for i in range(4)))
    (tmp_path / "photos" / "cats").symlink_to(tmp_path / "disk")
    (tmp_path / "photos" / "cats" / "loop").symlink_to(tmp_path / "photos")
    assert captions(of(tmp_path / "photos")) == [["cat"]] * 4 + [["dog"]] * 4


@pytest.mark.parametrize("value", ["no", "yes", "auto"])
def test_case_17_documented_values_that_yaml_reads_as_something_else(tiny, tmp_path, value):
    """Every documented choice: tests/test_config.py."""
    assert load_config(tiny.game_config, [f"speaker.compile={value}"]).speaker.compile == value
    (tmp_path / "run.yaml").write_text(f"task: caption\nspeaker: {{compile: {value}}}\n")
    assert load_config(tmp_path / "run.yaml", []).speaker.compile == value


def test_case_18_brackets_and_percent_in_a_path(home, tmp_path):
    root = tmp_path / "my [photos] 100%"
    photos(*(root / f"p{i}.png" for i in range(3)))
    (root / "metadata.jsonl").write_text("".join(json.dumps({"file_name": f"p{i}.png", "text": f"cat {i}"}) + "\n"
                                                 for i in range(3)))
    assert captions(of(root)) == [["cat 0"], ["cat 1"], ["cat 2"]]
    hub = DataConfig(name="hub", path=str(root), image_size=16, train=0, validation=0, test=0)
    assert captions(hub) == [["cat 0"], ["cat 1"], ["cat 2"]]


def test_case_19_sound_pixels_with_damaged_exif(tmp_path):
    """Other damage: tests/data/test_decode.py."""
    exif = Image.Exif()
    exif[0x0112] = 1
    image = Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3))
    image.save(tmp_path / "a.png", exif=exif)
    content = (tmp_path / "a.png").read_bytes()
    at = content.index(b"eXIf")
    length = int.from_bytes(content[at - 4:at], "big")
    (tmp_path / "a.png").write_bytes(content[:at + 4 + length // 2] + content[at + 8 + length:])
    assert np.array_equal(open_image(tmp_path / "a.png", 16), image)
    exif[0x0112] = 0
    image.save(tmp_path / "b.jpg", exif=exif)
    assert np.array_equal(open_image(tmp_path / "b.jpg", 16), Image.open(tmp_path / "b.jpg").convert("RGB"))


def test_case_20_a_terminal_that_is_ascii(tiny, game_run, command, monkeypatch):
    monkeypatch.setitem(tiny.environment, "PYTHONIOENCODING", "ascii")
    done = command("-m", "eval.evaluate", game_run)
    assert done.returncode == 0 and done.stdout.isascii() and "gap" in done.stdout, done.stderr


def test_case_21_a_tokenizer_with_more_tokens_than_the_llm(tiny, tmp_path):
    tokenizer = hf.AutoTokenizer.from_pretrained(tiny.llm)
    llm(tiny, tmp_path, hf.LlamaConfig(**SHAPE | {"vocab_size": len(tokenizer)}, **LLAMA))
    tokenizer.add_tokens(["<picture>"])
    tokenizer.save_pretrained(tmp_path)
    assert f"has token {len(tokenizer) - 1}" in refusal(speaker, tmp_path)


def test_case_22_a_class_folder_that_is_called_train(home, tmp_path):
    photos(*(tmp_path / kind / f"a {kind} {os.path.basename(kind)}.png" for kind in ("train", "car", "bus")))
    line = refusal(load, of(tmp_path), "train")
    assert "train in" in line and "was taken for a split" in line and "data.splits=hash" in line
    assert captions(of(tmp_path, splits="hash")) == [["a bus bus"], ["a car car"], ["a train train"]]
