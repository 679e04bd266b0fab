"""Drawings of things from Debian's openclipart: the subject is in the file name, and there are no sentences.

A subject is a thing if the head noun of its name is an English noun for something physical, by WordNet. The head noun
is the concept, and decides the split: `test` if it shares a word with the concept or file name of any stamp, else the
split of an emoji with this label, else its hash. A drawing for train or validation whose name holds a word of another
split, such as "apple juice box", is in no split. Loading needs the assets stamps, emoji and wordnet.

Leaves out drawings of several kinds of things, and checks of whether a drawing shows what its name says.
"""

from __future__ import annotations

from collections import Counter

from dixit.config import DataConfig
from dixit.data.assets import asset
from dixit.data.decode import open_image
from dixit.data.known import content_words, emoji_splits, labels_in, main_colours, stamp_words
from dixit.data.names import names_in, phrase
from dixit.data.sources import Source, content_hash, make_row, split_of
from dixit.data.wordnet import wordnet

MOST = 12  # drawings of one concept in a split
# Nouns by which no drawing is described, or which name a sense that the drawings do not show.
NOT_SHOWN = frozenset("""
    artist box_set certificate diagram example graph kick keyboard_layout layout mascot menu page panel pitch rule
    scene self shape spread stack stripper texture theory user set head body creation step display needle route video
    """.split())


def concept_of(name: str) -> str:
    """The head noun of a subject in the singular: "truck" for "big truck"; "" if it names no thing.

    A compound that is no kind of its last word stays whole: "hot dog", but "cake" for "birthday cake".
    """
    head, stop = "", -1
    for start, end, noun in names_in(name):
        if head and start != stop:
            break
        head, stop = noun, end
    last = head.split()[-1] if head else ""
    if last != head and any(wordnet().is_a(sense, last) for sense in wordnet().senses(head)):
        head = last
    return "" if head in NOT_SHOWN else head


def concept_splits(concepts: set[str]) -> dict[str, str]:
    """The split of each concept."""
    shown, emoji = stamp_words(), emoji_splits()
    return {concept: "test" if content_words(concept) & shown else emoji.get(concept, split_of(concept))
            for concept in concepts}


def drawings(split: str) -> list[tuple[dict, str]]:
    """The entries of labels.json in one split with their concepts, at most MOST of each concept, in a fixed order."""
    named = [(item, concept_of(item["name"])) for item in labels_in(asset("clipart"))]
    named = [(item, concept) for item, concept in named if concept]
    splits = concept_splits({concept for _, concept in named})
    shown = stamp_words()
    elsewhere = set().union(*(content_words(concept) for concept, other in splits.items() if other != split))
    chosen, counts = [], Counter[str]()
    for item, concept in sorted(named, key=lambda pair: content_hash(pair[0]["file"])):
        others = content_words(item["name"]) - content_words(concept)
        if splits[concept] != split or split != "test" and others & (shown | elsewhere) or counts[concept] == MOST:
            continue
        counts[concept] += 1
        chosen.append((item, concept))
    return sorted(chosen, key=lambda pair: pair[0]["file"])


def clipart_set(data: DataConfig, split: str) -> Source:
    folder, items = asset("clipart"), drawings(split)

    def row(i: int) -> dict:
        item, concept = items[i]
        image = open_image(folder / item["file"], data.image_size)
        colours, thing = " and ".join(main_colours(image)), phrase(item["name"])
        article = "an" if colours[0] in "aeiou" else "a"
        coloured = f"{colours} {item['name']}" if thing == item["name"] else f"{article} {colours} {item['name']}"
        return make_row(image, [thing, f"a drawing of {thing}", f"something {colours}", coloured], concept)

    return Source(len(items), content_hash(items), row)
