"""Names of things: ImageNet's classes, everyday words, kinds, and names in captions."""

from __future__ import annotations

import pytest

from dixit.common import DixitError, words
from dixit.data.names import (
    KINDS,
    NameFilter,
    is_basic,
    names_in,
    noun_of,
    phrase,
    things,
    things_of,
)

FIRST_NAMES = {
    0: "tench", 1: "goldfish", 7: "cock", 99: "goose", 151: "Chihuahua", 207: "golden retriever", 251: "dalmatian",
    281: "tabby", 291: "lion", 340: "zebra", 386: "African elephant", 388: "giant panda", 397: "puffer",
    398: "abacus", 409: "analog clock", 417: "balloon", 511: "convertible", 852: "tennis ball", 889: "violin",
    954: "banana", 963: "pizza", 970: "alp", 999: "toilet tissue"}
BASIC = {
    207: "dog", 251: "dog", 281: "cat", 31: "frog", 386: "elephant", 340: "zebra", 291: "lion", 4: "shark",
    22: "eagle", 1: "goldfish", 105: "koala", 130: "flamingo", 145: "penguin", 323: "butterfly", 309: "bee",
    365: "ape", 388: "panda", 511: "car", 817: "car", 555: "fire engine", 889: "violin", 402: "guitar", 579: "piano",
    852: "ball", 954: "banana", 963: "pizza", 928: "ice cream", 608: "jeans", 837: "sunglasses", 504: "mug",
    409: "clock", 515: "hat", 587: "hammer", 823: "stethoscope", 970: "mountain", 985: "flower", 483: "castle",
    917: "comic book", 879: "umbrella", 779: "bus", 673: "mouse", 620: "laptop", 417: "balloon", 150: "sea lion"}
KIND = {
    0: "fish", 22: "bird", 251: "animal", 309: "insect", 402: "instrument", 511: "vehicle", 779: "vehicle",
    466: "vehicle", 608: "clothing", 770: "clothing", 954: "fruit", 937: "vegetable", 963: "food", 966: "drink",
    559: "furniture", 764: "weapon", 425: "building", 440: "container", 742: "machine", 587: "tool", 850: "toy",
    985: "plant", 970: "landscape", 983: "person", 991: "mushroom", 919: "sign", 917: "book"}


def test_the_classes_are_in_the_order_of_classifiers():
    assert len(things()) == 1000 == len({thing.synset for thing in things()})
    assert {i: things()[i].names[0] for i in FIRST_NAMES} == FIRST_NAMES


def test_every_class_has_names_a_kind_and_a_definition():
    for thing in things():
        assert thing.names and thing.basic and thing.kind in set(KINDS.values()) and thing.definition, thing


def test_latin_names_are_left_out():
    assert things()[296].names == ("ice bear", "polar bear")
    assert things()[386].names == ("African elephant",)
    latin = {"Ursus Maritimus", "Loxodonta africana", "Canis lupus", "Tinca tinca", "Panthera leo", "Equus zebra"}
    assert not latin & {name for thing in things() for name in thing.names}


def test_everyday_words_and_kinds():
    assert {i: things()[i].basic for i in BASIC} == BASIC
    assert {i: things()[i].kind for i in KIND} == KIND


def test_everyday_words_are_fewer_than_classes_and_all_dogs_are_dogs():
    assert {things()[i].basic for i in things_of("dog")} == {"dog"}
    assert len({thing.basic for thing in things()}) < 600


def test_a_basic_listener_understands_the_everyday_word_of_every_class():
    keep = NameFilter("basic", "").keep
    captions = [f"{phrase(thing.basic)}." for thing in things()]
    assert not [caption for caption in captions if keep(words(caption)) != words(caption)]
    assert {thing.basic for thing, caption in zip(things(), captions, strict=True)
            if [name for _, _, name in names_in(caption)] != [thing.basic.lower()]} == {"orange", "can"}


def test_a_listener_of_a_kind_understands_the_names_of_its_classes():
    for kind in sorted({thing.kind for thing in things()} | {"dog", "fruit or vegetable"}):
        known = NameFilter("expert", kind).known
        assert not [things()[i].basic for i in things_of(kind) if not known(things()[i].basic.lower())], kind
    assert not [t.basic for i, t in enumerate(things()) if i not in things_of(t.basic)]
    unknown = NameFilter("expert", "not animal").known
    assert not [thing.basic for thing in things()[:398] if unknown(thing.basic.lower())]


@pytest.mark.parametrize("name, expected", [
    ("dog", "a dog"), ("owl", "an owl"), ("jeans", "jeans"), ("sunglasses", "sunglasses"), ("bus", "a bus"),
    ("umbrella", "an umbrella"), ("unicycle", "a unicycle"), ("dress", "a dress"), ("broccoli", "broccoli"),
    ("ice cream", "an ice cream"), ("cactus", "a cactus"), ("iPod", "an iPod")])
def test_phrases(name, expected):
    assert phrase(name) == expected


def test_animals_are_the_first_398_classes():
    assert things_of("animal") == frozenset(range(398))
    assert things_of("not animal") == frozenset(range(398, 1000))


def test_expressions():
    assert things_of("none") == frozenset()
    assert things_of("dog") == frozenset(range(151, 269))
    assert things_of("dogs or cats") == things_of("dog") | things_of("cat")
    assert things_of("not dog or cat") == frozenset(range(1000)) - things_of("dog or cat")
    assert {928, 954, 963, 948, 945, 934} <= things_of("food") and 251 not in things_of("food")
    assert {511, 779, 814, 404, 444, 466} <= things_of("vehicle") and not things_of("vehicle") & things_of("animal")
    assert {889, 402, 579, 513} <= things_of("musical instrument") < things_of("instrument")
    assert not {764, 837} & things_of("instrument")  # rifle and sunglasses
    assert not things_of("container") & things_of("vehicle") and not things_of("plant") & things_of("fruit")
    assert things_of("toy") < things_of("not animal")
    assert things_of("bird") == frozenset((*range(7, 25), *range(80, 101), *range(127, 147)))


@pytest.mark.parametrize("expression, near", [("anmal", "'animal'"), ("not vehicel", "'vehicle'"), ("", "''"),
                                              ("happiness", "'happiness'"), ("dog or", "'dog or'")])
def test_an_unknown_noun_is_refused(expression, near):
    with pytest.raises(DixitError, match=near):
        things_of(expression)


@pytest.mark.parametrize("caption, names", [
    ("A big red dog on the left.", ["dog"]),
    ("two dalmatians and a tree frog on the grass", ["dalmatian", "tree frog", "grass"]),
    ("A picture of a sports car", ["sports car"]),
    ("a man with glasses riding a bike", ["man", "glasses", "bike"]),
    ("a sitting dog", ["dog"]), ("A dog is running", ["dog"]), ("a small turtle swimming", ["turtle"]),
    ("the hot dogs and ice cream", ["hot dog", "ice cream"]), ("a fly", ["fly"]), ("a bird flying", ["bird"]),
    ("a small green circle at the top left", []), ("a big blue star", []),
    ("an orange shape", []), ("a photo of a thing", []), ("", []),
    ("antlop antlop", [])])
def test_names_in_captions(caption, names):
    assert [name for _, _, name in names_in(caption)] == names
    for start, end, name in names_in(caption):
        assert words(caption)[start:end][-1][:2] == name.split()[-1][:2]


@pytest.mark.parametrize("caption, noun", [
    ("A red sports car.", "sports car"), ("a dog and a cat", "dog"), ("a dalmatian on the grass", "dalmatian"),
    ("a red circle", ""), ("", "")])
def test_the_head_of_a_caption(caption, noun):
    assert noun_of(caption) == noun


def test_everyday_nouns():
    yes = "dog cat puppy kitten turtle man woman car animal vehicle bird eagle violin mug cup guitar tree flower " \
        "house table jeans glasses truck bus frog elephant hat"
    assert not [noun for noun in yes.split() if not is_basic(noun)]
    assert not [noun for noun in "dalmatian bullfrog terrier jeep beagle thing antlop".split() if is_basic(noun)]
    assert is_basic("ice cream") and is_basic("hot dog")
    assert not is_basic("tree frog") and not is_basic("sports car")


@pytest.mark.parametrize("level, kind, expected", [
    ("expert", "", "a dalmatian and a tree frog near a red car with a violin"),
    ("basic", "", "a and a frog near a red car with a violin"),
    ("expert", "animal", "a dalmatian and a tree frog near a red with a"),
    ("basic", "animal", "a and a frog near a red with a"),
    ("expert", "not animal", "a and a near a red car with a violin"),
    ("expert", "vehicle or instrument", "a and a near a red car with a violin"),
    ("expert", "none", "a and a near a red with a")])
def test_the_filter_keeps_what_is_understood(level, kind, expected):
    assert " ".join(NameFilter(level, kind).keep(words("A dalmatian and a tree frog near a red car with a violin.")
                                                 )) == expected


def test_the_filter_keeps_colours_and_whole_names():
    assert NameFilter("basic", "").keep(words("a white wolf")) == ["a", "white", "wolf"]
    assert NameFilter("basic", "animal").keep(words("a hot dog")) == ["a"]
    assert NameFilter("basic", "none").keep([]) == []
    assert NameFilter("expert", "none").keep(words("a big green star at the top")) == words(
        "a big green star at the top")


def test_an_unknown_level_or_kind_is_refused():
    with pytest.raises(DixitError, match="'expert'"):
        NameFilter("exprt", "")
    with pytest.raises(DixitError, match="'animal'"):
        NameFilter("basic", "anmal")
