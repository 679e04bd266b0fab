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
# Heads of names that are no kind of thing, or whose drawings show something else.
NOT_SHOWN = frozenset({"body part", "martin luther king", "road runner"}).union("""
    adult arctic ark art artist bar basis bloom body brace buddy bug business certificate chemical cobra come
    creation da diagram display don donna enthusiast example face female figure food generic graph guy hash head
    hedge heel hide hole human interior io john kick kid kiddy king lady layout lcd male manager manual mascot media
    medium menu mix monitor_lizard movie need needle neon page paint panel part party pattern person pitch portrait
    psycho queen ride rilievo roman room route rubber rule scene self set shape signore signorina spread stack stand
    step stripper structure sub sulla teacher terry texture theory thong timothy tux user video virus water
    """.split())
# Last words that are names of things here, although they are more often another part of speech or another sense.
SHOWN = frozenset("""
    angel brush can cd cube diary donkey drink duck egg fawn orange pepper rake shears shorts smoke teacup ticket troll
    tv wrench fire
    """.split())
# Compounds that WordNet does not know, or counts as a sense of their last word.
WHOLE = frozenset({"corn dog", "french fries", "hot dog"})
JOINING = ("and", "in", "of", "on", "with")


def name_and_concept(subject: str) -> tuple[str, str]:
    """A subject cut after its first noun phrase, "cat on leash" or "big truck", and its head noun, "cat" or "truck".

    A compound that is no kind of its last word is one noun: "teddy bear", but "cake" for "birthday cake". Both are ""
    if the subject names no thing or begins with words that are not English.
    """
    words, spans = subject.split(), names_in(subject)
    if subject in WHOLE:
        return subject, subject
    if words and words[-1] in SHOWN and not set(words) & set(JOINING):
        spans = [(len(words) - 1, len(words), words[-1])]
    head, begin, stop = "", 0, -1
    for start, end, noun in spans:
        if head and start != stop:
            break
        head, begin, stop = noun, start, end
    last = head.split()[-1] if head else ""
    if last != head and any(wordnet().is_a(sense, last) for sense in wordnet().senses(head)):
        head = last
    unknown = len(head) < 3 and head not in SHOWN or head in NOT_SHOWN
    if unknown or not all(wordnet().is_english(word) for word in words[:begin]):
        return "", ""
    second = next((end for start, end, _ in spans if stop < start <= stop + 2), 0)
    joined = second and words[stop] in JOINING
    return " ".join(words[:second if joined else stop]), head


def concept_splits(concepts: set[str]) -> dict[str, str]:
    """The split of each concept."""
    shown, emoji = stamp_words(), emoji_splits()
    return {concept: "test" if content_words(concept) & shown else emoji.get(concept, split_of(concept))
            for concept in concepts}


def drawings(split: str) -> list[dict]:
    """The entries of labels.json in one split with their `concept`, at most MOST of each concept, in a fixed order."""
    items = []
    for item in labels_in(asset("clipart")):
        name, concept = name_and_concept(item["name"])
        if concept:
            items.append({**item, "name": name, "concept": concept})
    splits = concept_splits({item["concept"] for item in items})
    elsewhere = set().union(*(content_words(concept) for concept, other in splits.items() if other != split))
    forbidden = set() if split == "test" else elsewhere | stamp_words()
    chosen, counts = [], Counter[str]()
    for item in sorted(items, key=lambda item: content_hash(item["file"])):
        others = content_words(item["name"]) - content_words(item["concept"])
        if splits[item["concept"]] == split and not others & forbidden and counts[item["concept"]] < MOST:
            counts[item["concept"]] += 1
            chosen.append(item)
    return sorted(chosen, key=lambda item: item["file"])


def clipart_set(data: DataConfig, split: str) -> Source:
    folder, items = asset("clipart"), drawings(split)

    def row(i: int) -> dict:
        item = items[i]
        image = open_image(folder / item["file"], data.image_size)
        colours, thing = " and ".join(main_colours(image)), phrase(item["name"])
        article = "an" if colours[0] in "aeiou" else "a"
        coloured = f"{colours} {item['name']}" if thing == item["name"] else f"{article} {colours} {item['name']}"
        return make_row(image, [thing, f"a drawing of {thing}", f"something {colours}", coloured], item["concept"])

    return Source(len(items), content_hash(items), row)
