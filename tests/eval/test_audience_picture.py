"""The picture of what one speaker came to say to several audiences, on tiny runs."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dixit.common import DixitError, rng
from dixit.config import Config, ListenerConfig, load_config
from eval import commands
from eval.audience_picture import Column, about_run, choose_images, columns, draw, wrap
from eval.figures import MAX_BYTES


@pytest.fixture(scope="module")
def runs(game_run, tmp_path_factory):
    """A game, and another one from the same base speaker under the name of a config that comes with dixit."""
    other = shutil.copytree(game_run, tmp_path_factory.mktemp("runs") / "other")
    config = yaml.safe_load((other / "config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump(config | {"name": "animals_vs_rest"}))
    return [game_run, other]


def test_a_column_for_the_base_and_one_for_each_run(runs, home, folder_of_cards, tmp_path, monkeypatch, capsys):
    out = tmp_path / "docs" / "pictures.png"
    monkeypatch.setattr("sys.argv", ["audience_picture", *map(str, runs), "--data", f"folder:{folder_of_cards}",
                                     "--images", "3", "--seed", "5", "--out", str(out)])
    commands.audience_picture()
    with Image.open(out) as picture:
        assert picture.width >= 900 and out.stat().st_size <= MAX_BYTES
    printed = capsys.readouterr().out
    assert "seed 5" in printed and printed.count("base: ") == printed.count("animals vs rest: ") == 3
    images, found = columns(runs, f"folder:{folder_of_cards}", 3, 5)
    assert [column.head for column in found] == ["base", load_config(runs[0] / "config.yaml").name.replace("_", " "),
                                                 "animals vs rest"]
    assert found[1].about == "for colour; not for grey"  # no config of its name comes with dixit
    assert found[2].about.startswith("an expert of animals should find the picture")
    assert found[1].captions == found[2].captions  # the same weights
    assert len(images) == 3 and all(f"{caption}\n" in printed for caption in found[2].captions)


def test_runs_of_other_bases_are_refused(runs, caption_run, home, folder_of_cards, tmp_path, train, tiny):
    cards = f"folder:{folder_of_cards}"
    other_base = tmp_path / "caption"
    train(tiny.caption_config, other_base, "seed=1")
    train(tiny.game_config, tmp_path / "game", f"speaker.init={other_base}", "train.steps=1")
    with pytest.raises(DixitError, match="another base speaker"):
        columns([runs[0], tmp_path / "game"], cards, 2, 0)
    with pytest.raises(DixitError, match="no base speaker or no listeners"):
        columns([caption_run], cards, 2, 0)


def test_images_are_drawn_by_the_seed():
    assert choose_images(430, 6, 0) == choose_images(430, 6, 0) != choose_images(430, 6, 1)
    assert len(set(choose_images(6, 6, 0))) == 6
    for images in (0, 7):
        with pytest.raises(DixitError, match="choose 1 to 6"):
            choose_images(6, images, 0)


def test_more_columns_than_can_be_read_are_refused(monkeypatch):
    monkeypatch.setattr("sys.argv", ["audience_picture", *"abcdef"])
    with pytest.raises(DixitError, match="name at most 5"):
        commands.audience_picture()


def test_heads_come_from_configs_or_listeners():
    assert about_run(Config(name="colours_vs_things")) == ("one listener understands colours but no names of things, "
                                                           "the other names but no colours")
    assert about_run(Config(name="mine", listeners=(ListenerConfig("all", 1.0),))) == "for all; not for nobody"


def test_any_caption_is_drawn_as_text(tmp_path):
    images = torch.from_numpy(rng("picture").integers(0, 256, (2, 3, 32, 32), dtype=np.uint8))
    texts = ["A $x^{2$ dog_ & <b> \\frac{", "word " * 60]
    draw(images, [Column(name, "about " * 9, texts) for name in ("base", "a very long name of a run " * 3)],
         tmp_path / "picture.png")
    assert Image.open(tmp_path / "picture.png").height > 250
    assert wrap("word " * 60, 1.5, 10.0, 5)[-1].endswith("…") and len(wrap("word " * 60, 1.5, 10.0, 5)) == 5
    assert wrap("", 1.5, 10.0) == []
