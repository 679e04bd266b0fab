"""What captions of pictures are made of."""

from __future__ import annotations

from datasets import Dataset
from datasets import Image as ImageColumn
from PIL import Image

from eval.picture_metrics import caption_figures, is_english, is_file_name, names_truly, without_colours


def test_english_words_and_file_names():
    for text, english, file in (("A tree frog.", True, False), ("An antlop.", False, False), ("Two dogs.", True, False),
                                ("IMG_0001", False, True), ("A dsc0042 of red.", False, True), ("", False, False),
                                ("A black-and-white antelope.", True, False), ("3 mugs", True, False)):
        assert is_english(text) == english and is_file_name(text) == file, text


def test_a_true_name_is_the_concept_or_above_or_below_it():
    for caption, concept, true in (("A dalmatian.", "dog", True), ("A white animal.", "dog", True),
                                   ("A hound.", "dog", True), ("A cat.", "dog", False), ("Something red.", "dog", None),
                                   ("A violin.", "fiddle", True)):
        assert names_truly(caption, concept) is true, caption


def test_shares_of_captions():
    red, grey = Image.new("RGB", (32, 32), (230, 10, 10)), Image.new("RGB", (32, 32), (120, 120, 120))
    data = Dataset.from_dict({"image": [red, grey, grey], "concept": ["dog", "cup", "cup"]}).cast_column(
        "image", ImageColumn())
    found = caption_figures(["A red dog.", "A red mug.", "A grey thing."], list(data["concept"]),
                            without_colours(data))
    shares = {name: round(figure["mean"], 2) for name, figure in found.items()}
    assert shares == {"says/name": 0.67, "true_name": 0.5, "says/colour": 1.0, "invented_colour": 0.5, "english": 1.0,
                      "file_name": 0.0}
