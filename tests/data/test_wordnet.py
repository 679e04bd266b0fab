"""WordNet: senses, hypernyms, related nouns and English words."""

from __future__ import annotations

import pytest

from dixit.data.wordnet import wordnet

# A broader noun: nouns that are one, from common knowledge.
ARE = {
    "animal": "dog cat horse cow pig sheep goat lion tiger bear wolf fox deer elephant giraffe zebra monkey ape whale "
              "dolphin shark fish bird snake lizard frog turtle spider bee ant butterfly snail crab lobster dalmatian "
              "poodle eagle penguin owl salmon trout mouse rat rabbit squirrel kangaroo koala camel worm",
    "dog": "dalmatian poodle beagle terrier corgi puppy collie bulldog spaniel retriever",
    "cat": "tabby lion tiger leopard cheetah",
    "bird": "eagle owl penguin robin sparrow crow duck goose swan ostrich parrot chicken hen hawk pigeon flamingo",
    "fish": "shark salmon trout tuna goldfish eel cod ray carp",
    "insect": "ant bee fly beetle butterfly moth mosquito wasp grasshopper dragonfly",
    "reptile": "snake lizard turtle crocodile alligator dinosaur iguana",
    "mammal": "dog cat whale bat horse elephant human mouse dolphin",
    "fruit": "apple banana orange lemon strawberry cherry grape pear peach plum mango pineapple melon fig",
    "vegetable": "carrot cabbage broccoli potato onion cucumber pumpkin spinach cauliflower",
    "food": "bread cheese pizza hamburger apple banana chocolate ice_cream soup sandwich cake carrot",
    "drink": "coffee tea beer wine milk",
    "vehicle": "car truck bicycle boat ship tractor tank motorcycle van taxi submarine rocket sled",
    "instrument": "violin piano guitar drum flute trumpet cello harp trombone saxophone banjo",
    "clothing": "shirt hat coat dress skirt jacket sock glove sweater jeans jersey kimono",
    "furniture": "table chair bed desk sofa bookcase wardrobe cradle bench lamp",
    "tool": "hammer saw screwdriver axe shovel rake",
    "weapon": "gun rifle sword bow cannon pistol spear",
    "building": "house church school hotel barn library mosque restaurant skyscraper",
    "container": "cup bottle box bag basket bucket jar barrel vase glass mug",
    "machine": "computer printer slot_machine",
    "plant": "tree flower grass rose oak daisy fern cactus",
    "person": "man woman child boy girl teacher doctor nurse king queen",
}
ARE_NOT = {
    "animal": "violin table car banana house hammer jeans tree pizza cup cloud",
    "vehicle": "dog violin house apple", "instrument": "dog banana shirt", "fruit": "carrot dog hammer",
    "food": "violin house car", "clothing": "dog apple piano", "person": "violin table apple", "cat": "dog horse bird",
    "bird": "dog violin bat butterfly", "fish": "whale eagle dog",
}


def pairs(table: dict[str, str]) -> list[tuple[str, str]]:
    return [(noun.replace("_", " "), broad) for broad, nouns in table.items() for noun in nouns.split()]


def test_known_nouns_have_their_known_hypernyms():
    net, known = wordnet(), pairs(ARE)
    assert len(known) >= 200
    assert not [f"{a} is a {b}" for a, b in known if not any(net.is_a(sense, b) for sense in net.senses(a))]


def test_the_main_sense_of_a_noun_has_no_wrong_hypernym():
    net = wordnet()
    assert not [f"{a} is no {b}" for a, b in pairs(ARE_NOT) if net.is_a(net.senses(a)[0], b)]


def test_ids_lemmas_and_definitions():
    net = wordnet()
    assert net.senses("dog")[0] == "n02084071"
    assert net.lemmas("n02084071") == ["dog", "domestic dog", "Canis familiaris"]
    assert net.definition("n02110341") == "a large breed having a smooth white coat with black or brown spots; " \
        "originated in Dalmatia"
    assert {"n02084071", "n00001740"} <= net.ancestors("n02084071")
    assert len(net.synsets) == 82115
    assert net.tags("n02084071", "dog") == 42


@pytest.mark.parametrize("plural, singular", [
    ("dogs", "dog"), ("mice", "mouse"), ("boxes", "box"), ("churches", "church"), ("puppies", "puppy"),
    ("women", "woman"), ("children", "child"), ("geese", "goose"), ("knives", "knife"), ("hot dogs", "hot dog"),
    ("dog", "dog"), ("glass", "glass"), ("bus", "bus")])
def test_plurals_have_the_senses_of_the_singular(plural, singular):
    assert wordnet().singular(plural) == singular
    assert wordnet().senses(plural) == wordnet().senses(singular) != []


def test_no_noun_has_no_sense():
    assert wordnet().senses("antlop") == [] == wordnet().senses("")


def test_related_nouns():
    net = wordnet()
    yes = "dog/dalmatian dog/animal dalmatian/dog dogs/puppy car/vehicle car/automobile crane/bird violin/instrument " \
        "dog/dog fiddle/violin"
    no = "dog/cat thing/dog object/dog entity/dog man/dog person/dog artifact/cup picture/dog unit/car violin/animal " \
        "cup/car antlop/antlop apple/banana eagle/owl"
    assert not [pair for pair in yes.split() if not net.related(*pair.split("/"))]
    assert not [pair for pair in no.split() if net.related(*pair.split("/"))]


def test_english_words():
    net = wordnet()
    yes = "dog antelopes running ran stopped biggest bigger mice the of with and red quickly isn't dog's Dog 2 " \
        "black-and-white photo were standing smiling its stripes"
    no = "antlop qwe zx blurr dogg thhe elphant -- striipes"
    assert not [word for word in yes.split() if not net.is_english(word)]
    assert not [word for word in no.split() if net.is_english(word)]
