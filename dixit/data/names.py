"""Names of things: the everyday word and the broad kind of a noun, ImageNet's 1,000 classes, and names in captions.

The everyday word of a synset is the most common word among its own names and those of its hypernyms below its broad
kind: a dalmatian is a "dog", a violin a "violin". How common a word is comes from CLIP's byte-pair vocabulary, whose
tokens are in order of frequency. A word counts for a hypernym only if that is its first sense.

Leaves out nouns that are no physical things, and which sense of a noun a caption means: its main one is taken.
"""

from __future__ import annotations

import difflib
import gzip
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path

from dixit.common import DixitError, did_you_mean, words
from dixit.data.scenes import WORD_CLASSES
from dixit.data.wordnet import FUNCTION_WORDS, GENERAL, PERSON, wordnet

# Broad kinds of things: synset -> the word a person would use. The nearest one on the way up is a thing's kind.
KINDS = {
    "n01503061": "bird", "n02512053": "fish", "n02159955": "insect", "n00015388": "animal", PERSON: "person",
    "n07705931": "fruit", "n07707451": "vegetable", "n12992868": "mushroom", "n07734744": "mushroom",
    "n07881800": "drink",
    "n00021265": "food", "n07555863": "food", "n04524313": "vehicle", "n03100490": "vehicle",
    "n03800933": "instrument", "n03051540": "clothing", "n03380867": "clothing", "n03405725": "furniture",
    "n03151500": "furniture", "n04565375": "weapon", "n02913152": "building", "n03094503": "container",
    "n04049303": "container", "n03699975": "machine", "n03563967": "tool", "n03964744": "toy",
    "n02729837": "appliance", "n04447443": "toiletry", "n03597469": "jewelry", "n02739668": "armour",
    "n03294048": "equipment", "n03078287": "equipment", "n03208556": "equipment", "n03183080": "device",
    "n02755352": "device", "n03309808": "cloth", "n04341686": "structure", "n04362025": "structure",
    "n03733281": "structure", "n03122748": "covering", "n00017222": "plant", "n13086908": "plant",
    "n09287968": "landscape", "n09225146": "water", "n05220461": "body part", "n06589574": "book",
    "n06410904": "writing", "n06359193": "writing", "n06791372": "sign", "n06793231": "sign", "n14974264": "paper",
    "n09289709": "sphere", "n00020827": "material", "n00021939": "artifact", "n00019128": "natural object"}
# Hypernyms that are common words, but too general to name what a picture shows.
TOO_GENERAL = frozenset("""
    piece ware participant warmer system transport barrier housing press lounge bars web setup works site seat reaper
    support part paper body line band bar slot pin mammal instrument obstruction garment apparatus commodity stuff
    peripheral upright lever emblem sweet drug turner brass young trap alcohol hose cooker monument
    """.split()).union(KINDS.values())
VAGUE = frozenset({"device", "equipment", "covering", "structure", "artifact", "material", "natural object", "tool",
                   "machine", "body part", "writing", "appliance", "toiletry", "landscape", "water", "container"})
# Exceptions to the rule of the everyday word.
BASIC = {
    "n01847000": "duck", "n02276258": "butterfly", "n02457408": "sloth", "n02346627": "porcupine",
    "n03594734": "jeans", "n04355933": "sunglasses", "n04356056": "sunglasses", "n06874185": "traffic light",
    "n02666196": "abacus", "n04118776": "ruler", "n02892201": "plaque", "n03584254": "iPod", "n04049303": "barrel",
    "n04243546": "slot machine", "n06359193": "website", "n03496892": "harvester", "n13133613": "corn",
    "n12620546": "rose hip", "n01616318": "vulture", "n01806143": "peacock", "n01560419": "bird",
    "n01817953": "parrot", "n02397096": "warthog", "n02412080": "ram", "n02415577": "sheep", "n02443114": "weasel",
    "n02443484": "ferret", "n02116738": "wild dog", "n02125311": "cougar", "n02127052": "lynx", "n02114855": "coyote",
    "n02165456": "ladybug", "n01698640": "alligator", "n02497673": "lemur", "n02500267": "lemur", "n02606052": "fish",
    "n01629819": "salamander", "n01632458": "salamander", "n01632777": "salamander", "n01871265": "elephant",
    "n02117135": "hyena", "n01873310": "platypus", "n02454379": "armadillo", "n01784675": "centipede",
    "n03017168": "bell", "n02804414": "crib", "n02870880": "bookcase", "n04447861": "toilet seat",
    "n03047690": "shoe", "n03534580": "skirt", "n03866082": "skirt", "n03770439": "skirt", "n03775071": "mitten",
    "n03980874": "poncho", "n03710637": "swimsuit", "n03494278": "harmonica", "n03692522": "magnifying glass",
    "n03759954": "microphone", "n03877472": "pajamas", "n03888605": "parallel bars", "n03935335": "piggy bank",
    "n03895866": "train", "n03393912": "train", "n04330267": "stove", "n04335435": "tram", "n04487081": "bus",
    "n04522168": "vase", "n04553703": "sink", "n04399382": "teddy bear", "n07754684": "jackfruit",
    "n07745940": "strawberry", "n15075141": "toilet paper", "n03032252": "cinema", "n03781244": "monastery",
    "n03877845": "palace", "n03483316": "hair dryer", "n03691459": "speaker", "n04347754": "submarine",
    "n02981792": "boat", "n04147183": "boat", "n04483307": "boat", "n03791053": "scooter", "n03444034": "go-kart",
    "n04482393": "tricycle", "n04509417": "unicycle", "n02825657": "bell tower", "n03014705": "chest",
    "n03485407": "computer", "n03180011": "computer", "n07871810": "meat loaf"}
# What WordNet also has under the second synset, but a person has not.
APART = {"n04524313": "n03094503", "n07705931": "n13086908"}  # vehicle: container; fruit: plant part
# Musical, measuring, medical and scientific instruments: WordNet's first sense includes rifles and sunglasses.
INSTRUMENTS = {"instrument": frozenset({"n03800933", "n03733925", "n03739693", "n04147495"})}
RARE = 1 << 16  # the rank of a word that is not in CLIP's vocabulary
STEP = 1.5  # a word one hypernym further up must be this many times as common
OTHER_SENSE = 3.0  # likewise for a word whose first sense is another one
NOT_NAMES = frozenset("""
    picture photo photograph image thing object item shape background foreground emoji icon symbol view scene shot top
    bottom left right middle centre center side front back end part piece pair group bunch set kind type lot number
    color colour white black brown gray grey light dark line spot
    """.split()).union(*WORD_CLASSES.values())

DETERMINERS = frozenset("""
    a an the this that these those some any every each all both another such my your his her its our their one two
    three four five six seven eight nine ten many several few of with and or
    """.split())
WITHOUT_ARTICLE = frozenset("""
    broccoli cauliflower zucchini corn hay dough guacamole makeup lotion sunscreen perfume wool velvet mail bread food
    coffee wine clothing furniture jewelry cloth coral equipment armour writing water paper tissue spray
    """.split())
PLURALS = frozenset({"glasses"})  # not the plural of "glass" in most captions
LEVELS = ("basic", "expert")
EVERYDAY = 20_000  # the highest rank of a synonym of an everyday word that is one itself
VERY_COMMON = 7_000  # the highest rank of a word that is an everyday one beside a more general one, as "puppy"


@cache
def _ranks() -> dict[str, int]:
    """The rank of every whole word of CLIP's vocabulary, 0 for the most common. From open_clip's own file."""
    path = _package("open_clip") / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1:49152 - 256 - 2 + 1]
    return {merge.replace(" ", "").removesuffix("</w>"): i for i, merge in enumerate(merges) if merge.endswith("</w>")}


def _package(name: str) -> Path:
    """The folder of an installed package, which is not imported."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise DixitError(f"the package {name} is not installed; run scripts/setup")
    return Path(spec.submodule_search_locations[0])


@lru_cache(1 << 16)
def rank(name: str) -> int:
    """How common a name is, lower for more common: its rank in CLIP's vocabulary, for a plural if that is lower.

    For a name of several words, that of its rarest word.
    """
    ranks = _ranks()
    return max(min(ranks.get(part, RARE), ranks.get(part + "s", RARE)) for part in name.lower().split())


@dataclass(frozen=True)
class Thing:
    """A class of ImageNet."""

    synset: str
    names: tuple[str, ...]  # synonyms, without Latin ones
    basic: str  # the everyday word
    kind: str  # the word for its broad kind
    definition: str


@lru_cache(1 << 16)
def main_sense(noun: str) -> str:
    """The main sense of a noun: most often tagged in SemCor, then the one it is the first name of, then the first.

    Persons count only for a noun with no other sense, proper names never. "" if there is none.
    """
    bases = set(wordnet().bases(noun.lower(), "noun"))
    for synset in _by_use(noun, wordnet().senses(noun)):
        if any(lemma.lower() in bases and (" " in lemma or not lemma.istitle()) for lemma in wordnet().lemmas(synset)):
            return synset
    return ""


def _by_use(noun: str, senses: Iterable[str]) -> list[str]:
    """Senses of a noun, the main one first."""
    net, bases = wordnet(), set(wordnet().bases(noun.lower(), "noun"))
    keys = {}
    for synset in senses:
        tags = max(net.tags(synset, base) for base in bases)
        keys[synset] = PERSON in net.ancestors(synset) and not tags, -tags, net.lemmas(synset)[0] not in bases
    return sorted(keys, key=keys.__getitem__)


@cache
def things() -> tuple[Thing, ...]:
    """The 1,000 classes of ImageNet in the order of a classifier's outputs, from timm's file."""
    path = _package("timm") / "data" / "_info" / "imagenet_synsets.txt"
    return tuple(Thing(synset, names_of(synset), basic(synset), kind(synset), wordnet().definition(synset))
                 for synset in path.read_text(encoding="utf-8").split())


@cache
def names_of(synset: str) -> tuple[str, ...]:
    """The names of a synset without Latin species names, and without abbreviations if there are others."""
    lemmas = wordnet().lemmas(synset)
    english = [lemma for lemma in lemmas if not _is_latin(lemma)] or lemmas
    return tuple([lemma for lemma in english if "." not in lemma and not lemma.isupper()] or english)


def _is_latin(lemma: str) -> bool:
    first, *rest = lemma.split()
    if not first[0].isupper() or not rest:
        return first[0].isupper() and bool(wordnet().senses(f"genus {first}"))
    return bool(wordnet().senses(f"genus {first}")) or not wordnet().is_english(rest[-1])


@cache
def _levels(synset: str) -> tuple[tuple[str, ...], ...]:
    """The synsets on the way up, by distance: the synset itself, its hypernyms, theirs, and so on."""
    levels: list[tuple[str, ...]] = [(synset,)]
    seen = {synset}
    while above := tuple(dict.fromkeys(h for s in levels[-1] for h in wordnet().hypernyms(s) if h not in seen)):
        levels.append(above)
        seen.update(above)
    return tuple(levels)


@cache
def _kind_synset(synset: str) -> str:
    for level in _levels(synset):
        for candidate in KINDS:
            if candidate in level:
                return candidate
    return ""


def kind(synset: str) -> str:
    """The word for the broad kind of a synset; "" for what is no physical thing."""
    return KINDS.get(_kind_synset(synset), "")


@cache
def basic(synset: str) -> str:
    """The everyday word for a synset; if none is in CLIP's vocabulary its kind, or its first name if that is vague."""
    if synset in BASIC:
        return BASIC[synset]
    _, word = min(_everyday_words(synset), default=(0, ""))
    if word or not kind(synset) or kind(synset) in VAGUE:
        return word or names_of(synset)[0]
    return kind(synset)


def _everyday_words(synset: str) -> Iterator[tuple[float, str]]:
    """The candidates for the everyday word of a synset, each with its rank, raised for a general or ambiguous one."""
    net = wordnet()
    stop = net.ancestors(_kind_synset(synset)) if _kind_synset(synset) else GENERAL
    names = names_of(synset)
    heads = {name.split()[-1] for name in names if " " in name}
    above = {lemma for s in net.ancestors(synset) for lemma in net.lemmas(s)}
    for depth, level in enumerate(_levels(synset)):
        for candidate in level:
            if candidate in stop or candidate in KINDS:
                continue
            for name in names_of(candidate):
                is_first = main_sense(name.lower()) == candidate
                if rank(name) == RARE or (depth and name in TOO_GENERAL):
                    continue
                if " " in name:  # a name of several words, such as "hot dog", unless its last one is a hypernym
                    same = name.replace(" ", "") == names[0].replace(" ", "")
                    if depth == 0 and same and name.split()[-1] not in above:
                        yield rank(name), names[0]
                elif is_first or name in heads:
                    yield rank(name) * STEP**depth, name
                elif depth == 0 and name == names[0]:
                    yield rank(name) * OTHER_SENSE, name


def phrase(name: str) -> str:
    """A name with its indefinite article: "a dog", "an owl"; plurals and materials have none: "jeans", "broccoli"."""
    last = name.split()[-1]
    if last in WITHOUT_ARTICLE or (last.endswith("s") and last[-2:] not in ("ss", "us", "is") and
                                   last not in ("bus", "lens", "gas", "octopus")):
        return name
    vowel = name[0].lower() in "aeiou" and not name.lower().startswith(("uni", "eu", "one", "use", "uku", "ute"))
    return ("an " if vowel else "a ") + name


# ---- which classes an expression means -------------------------------------------------------------------

@lru_cache(256)
def things_of(expression: str) -> frozenset[int]:
    """The classes that an expression means: NOUN, NOUN or NOUN, not NOUN, not NOUN or NOUN, or none.

    "not" negates the whole rest. A noun means all hyponyms of its senses that are things. Raises DixitError for a
    word that is no noun of a thing, with near names.
    """
    positive, synsets = _meant(expression)
    return frozenset(i for i, t in enumerate(things()) if positive != synsets.isdisjoint(_above(t.synset)))


@lru_cache(256)
def _meant(expression: str) -> tuple[bool, frozenset[str]]:
    """Whether an expression is positive, and the synsets of its nouns."""
    text = " ".join(expression.lower().split())
    if text == "none":
        return True, frozenset()
    synsets: set[str] = set()
    for noun in text.removeprefix("not ").split(" or "):
        senses = _kind_senses(noun)
        if not senses:
            names = sorted({t.basic for t in things()} | set(KINDS.values()))
            near = difflib.get_close_matches(noun, names, n=5, cutoff=0.6) or sorted(set(KINDS.values()))
            raise DixitError(f"'{noun}' in '{expression}' names no kind of thing; {did_you_mean(noun, near)}")
        synsets.update(senses)
    return not text.startswith("not "), frozenset(synsets)


@lru_cache(256)
def _kind_senses(noun: str) -> frozenset[str]:
    """The synsets that a noun of an expression means: those of KINDS if it is one, else common senses and classes."""
    singular = wordnet().singular(noun)
    if singular in INSTRUMENTS:
        return INSTRUMENTS[singular]
    if singular in KINDS.values():
        return frozenset(synset for synset, word in KINDS.items() if word == singular)
    common = (s for i, s in enumerate(thing_senses(noun)) if i == 0 or wordnet().tags(s, singular))
    return _classes_named().get(noun, frozenset()).union(common)


@lru_cache(1 << 16)
def thing_senses(noun: str) -> tuple[str, ...]:
    """The senses of a noun that are physical things, its main one first; persons only if that is its main sense."""
    net, main = wordnet(), main_sense(noun)
    senses = [s for s in net.senses(noun) if not net.ancestors(s).isdisjoint(KINDS) and s not in GENERAL
              and (PERSON not in net.ancestors(s) or s == main)]
    return tuple(sorted(_by_use(noun, senses), key=lambda s: s != main))


@cache
def _above(synset: str) -> frozenset[str]:
    """The hypernyms of a synset with itself, less those of APART."""
    found = wordnet().ancestors(synset)
    return found - {APART[s] for s in APART.keys() & found}


# ---- names in captions -----------------------------------------------------------------------------------

@cache
def _classes_named() -> dict[str, frozenset[str]]:
    """The synsets of the classes of which a name, in lower case, is the everyday word or a main name."""
    named: dict[str, set[str]] = {}
    for thing in things():
        for name in (thing.basic, *(n for i, n in enumerate(thing.names) if i == 0 or " " in n)):
            named.setdefault(name.lower(), set()).add(thing.synset)
    return {name: frozenset(synsets) for name, synsets in named.items() if name not in NOT_NAMES}


@lru_cache(1 << 16)
def _meanings(name: str) -> frozenset[str]:
    """The synsets that a name means: those of the classes with this name, and its main sense if it is a common one."""
    net, classes, main = wordnet(), _classes_named().get(name, frozenset()), thing_senses(name)[:1]
    if classes and main and (PERSON in net.ancestors(main[0]) or not net.tags(main[0], name)):
        return classes
    return classes.union(main)


@lru_cache(1 << 17)
def _name(text: str) -> tuple[str, bool]:
    """The dictionary form of a name of a thing, "" if the text is none; and whether it is one in any context.

    Words that are verbs or adjectives more often than nouns ("fly", "saw") are names in some contexts only.
    """
    net = wordnet()
    last = text.split()[-1]
    if NOT_NAMES.issuperset(text.split()) or text in FUNCTION_WORDS or (" " in text and last in FUNCTION_WORDS):
        return "", False
    bases = [text] if text in PLURALS or text in _classes_named() else list(net.bases(text, "noun"))
    base = max(bases, key=lambda b: net.words["noun"].get(b, 0), default="")
    if len(base) < 2 or base in NOT_NAMES:
        return "", False
    main, senses = main_sense(base), thing_senses(base)
    if base not in _classes_named() and (not senses or (
            main and main != senses[0] and 4 * net.tags(senses[0], base) < max(net.tags(main, base), 1))):
        return "", False
    if " " in text:
        return base, True
    verbs, adjectives, adverbs = (max((net.words[pos][b] for b in net.bases(text, pos)), default=0)
                                  for pos in ("verb", "adj", "adv"))
    nouns = net.words["noun"].get(base, 0) + 1
    if adjectives + adverbs > 100 * nouns:  # "small", a noun for a part of the back
        return "", False
    return base, verbs + adjectives + adverbs <= nouns


@lru_cache(1 << 16)
def _opens(word: str) -> bool:
    """Whether a noun may follow this word: articles, numbers, adjectives."""
    adjectives = wordnet().words["adj"]
    return word in DETERMINERS or word in NOT_NAMES or adjectives.get(word, 0) > wordnet().words["noun"].get(word, 0)


def _spans(tokens: list[str]) -> list[tuple[int, int, str]]:
    found: list[tuple[int, int, str]] = []
    start = 0
    while start < len(tokens):
        for end in range(min(start + 4, len(tokens)), start, -1):
            name, certain = _name(" ".join(tokens[start:end]))
            if name and not certain:
                before = start == 0 or _opens(tokens[start - 1])
                after = end < len(tokens) and _name(tokens[end])[0] != ""
                name = name if before and not after else ""
            if name:
                found.append((start, end, name))
                start = end - 1
                break
        start += 1
    return found


def names_in(text: str) -> list[tuple[int, int, str]]:
    """The names of things in a caption: (first word, word after the last, name in the singular), left to right.

    Words are those of `dixit.common.words`; the longest match of up to 4 words is taken. Colours, shapes, positions and
    words such as "picture" are no names.
    """
    return _spans(words(text))


def noun_of(caption: str) -> str:
    """The head of a caption's first noun phrase: the last of its first names in a row; "" if it has none."""
    head, stop = "", -1
    for start, end, name in names_in(caption):
        if head and start != stop:
            break
        head, stop = name, end
    return head


@cache
def _basic_words() -> frozenset[str]:
    return frozenset(thing.basic.lower() for thing in things())


@lru_cache(1 << 16)
def is_basic(noun: str) -> bool:
    """Whether a noun is an everyday word: the one for its own main thing, a very common one, or a broad kind."""
    if noun in _basic_words():
        return True
    synset = next(iter(thing_senses(noun)), "")
    if not synset or not GENERAL.isdisjoint(wordnet().senses(noun)):
        return False
    if _kind_synset(synset) == synset or noun in KINDS.values() or (" " not in noun and rank(noun) < VERY_COMMON):
        return True
    word, names = basic(synset), wordnet().lemmas(synset)
    return word == noun or (rank(noun) < EVERYDAY and (word in names or wordnet().singular(word) in names))


@lru_cache(1 << 16)
def _head(name: str) -> str:
    """The last word of a name of several words if it is a hypernym: "frog" of "tree frog"; "" of "hot dog"."""
    last = _name(name.split()[-1])[0]
    senses = thing_senses(name)
    return last if last and senses and wordnet().is_a(senses[0], last) else ""


class NameFilter:
    """Removes from captions the names that a listener does not understand.

    level: "basic" keeps everyday names only, "expert" all. kind: an expression of `things_of` that the names must
    satisfy, e.g. "animal", "not animal", "none"; "" for no condition.
    """

    def __init__(self, level: str, kind: str):
        if level not in LEVELS:
            raise DixitError(f"unknown level '{level}'; {did_you_mean(level, LEVELS)}")
        self.level, self.kind = level, kind
        self.condition = _meant(kind) if kind else None
        self._known: dict[str, bool] = {}

    def keep(self, tokens: list[str]) -> list[str]:
        """The words without unknown names.

        Of a name of several words the known part is kept, with its colour: "frog" of "tree frog", but no "dog" of
        "hot dog".
        """
        kept: list[str] = []
        position = 0
        for start, end, name in _spans(tokens):
            kept += tokens[position:start]
            if self.known(name):
                kept += tokens[start:end]
            elif end - start > 1 and self.known(_head(name)):
                kept += [word for word in tokens[start:end - 1] if word in NOT_NAMES] + [tokens[end - 1]]
            position = end
        return kept + tokens[position:]

    def known(self, name: str) -> bool:
        """Whether a name, in the form of `names_in`, is understood."""
        if name not in self._known:
            self._known[name] = self._decide(name)
        return self._known[name]

    def _decide(self, name: str) -> bool:
        if not name or (self.level == "basic" and not is_basic(name)):
            return False
        if self.condition is None:
            return True
        positive, synsets = self.condition
        meanings = _meanings(name)
        return bool(meanings) and positive != all(synsets.isdisjoint(_above(synset)) for synset in meanings)
