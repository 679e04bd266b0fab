"""WordNet 3.0: the senses of English nouns, their hypernyms, and which words are English.

A sense is a synset id such as "n02084071" (dog), as in ImageNet. Words are lower case with spaces; plural and other
inflected forms are reduced by WordNet's own rules (its lists of exceptions, then its suffix rules).

Leaves out the senses of verbs, adjectives and adverbs, and all relations but hypernyms (instance hypernyms included).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any

from dixit.common import read_json
from dixit.data.assets import asset

# WordNet's rules of detachment: a suffix and what replaces it.
SUFFIXES = {
    "noun": (("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"),
             ("ies", "y")),
    "verb": (("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e"))}
# Words of grammar that WordNet leaves out.
FUNCTION_WORDS = frozenset("""
    a an the this that these those some any every each all both either neither no another other such what which whose
    i you he she it we they me him her us them my your his its our their mine yours hers ours theirs myself yourself
    himself herself itself ourselves yourselves themselves who whom someone somebody something anyone anybody anything
    everyone everybody everything nobody nothing none one ones and or but nor so yet if because although though while
    when whenever where wherever whether unless until till since than as of in on at by for with without within about
    above across after against along alongside amid among amongst around atop before behind below beneath beside besides
    between beyond despite down during except from inside into like near off onto opposite out outside over past per
    through throughout to toward towards under underneath unlike up upon via how why there here not be am is are was
    were been being do does did done doing have has had having can could may might must shall should will would ought
    cannot don't doesn't didn't isn't aren't wasn't weren't can't won't it's that's there's let's i'm
    """.split())
# Synsets so general that they name nothing: a noun of which this is the main sense is related only to itself.
GENERAL = frozenset({
    "n00001740", "n00001930", "n00002137", "n00002452", "n00002684", "n00003553", "n00004258", "n00004475",
    "n00021939", "n00019128", "n00020827", "n03575240", "n00007347", "n00031264", "n00023100", "n00024264",
    "n00031921", "n00033020", "n00033615", "n00029378", "n00027807"})
PERSON = "n00007846"


class WordNet:
    """The content of the asset `wordnet`."""

    def __init__(self, content: dict[str, Any]):
        self.synsets: dict[str, dict[str, Any]] = content["synsets"]
        self.words: dict[str, dict[str, int]] = content["words"]  # part of speech -> word -> number of its tags
        self._senses: dict[str, list[str]] = content["senses"]
        self._exceptions: dict[str, dict[str, str]] = content["exceptions"]
        self.ancestors = lru_cache(None)(self._ancestors)
        self.is_english = lru_cache(1 << 16)(self._is_english)

    def lemmas(self, synset: str) -> list[str]:
        """The synonyms of a synset, the most common first, in WordNet's spelling ("dog", "Canis familiaris")."""
        return self.synsets[synset]["lemmas"]

    def definition(self, synset: str) -> str:
        return self.synsets[synset]["definition"]

    def hypernyms(self, synset: str) -> list[str]:
        """The synsets directly above."""
        return self.synsets[synset]["hypernyms"]

    def bases(self, word: str, pos: str) -> Iterator[str]:
        """The dictionary forms of a word that are words of a part of speech; itself first if it is one.

        pos: noun, verb, adj or adv.
        """
        known = self.words[pos]
        if word in known:
            yield word
        exception = self._exceptions.get(pos, {}).get(word, "")
        if exception in known:
            yield exception
            return
        for suffix, replacement in SUFFIXES.get(pos, ()):
            base = word[:len(word) - len(suffix)] + replacement
            # Words of one or two letters are mostly abbreviations: "as" is no plural of "a", "bus" none of "bu".
            if word.endswith(suffix) and len(base) > 2 and not word.endswith("ss") and base in known:
                yield base

    def senses(self, noun: str) -> list[str]:
        """The synsets of a noun in the order of WordNet's senses, then those of its singular. [] if it is no noun."""
        found = dict.fromkeys(s for base in self.bases(noun.lower(), "noun") for s in self._senses.get(base, ()))
        return list(found)

    def singular(self, noun: str) -> str:
        """The dictionary form of a noun; the word itself if there is none."""
        return next(self.bases(noun.lower(), "noun"), noun.lower())

    def _ancestors(self, synset: str) -> frozenset[str]:
        """All hypernyms of a synset, direct or not, with itself."""
        return frozenset({synset}).union(*(self.ancestors(above) for above in self.hypernyms(synset)))

    def is_a(self, synset: str, noun: str) -> bool:
        """Whether a sense of the noun is the synset or one of its hypernyms."""
        return not self.ancestors(synset).isdisjoint(self.senses(noun))

    def tags(self, synset: str, noun: str) -> int:
        """How often SemCor uses a noun in this sense."""
        entry = self.synsets[synset]
        return max((n for lemma, n in zip(entry["lemmas"], entry["tags"], strict=True)
                    if lemma.lower() == noun), default=0)

    def related(self, a: str, b: str) -> bool:
        """Whether one noun is the other, or a synonym, hypernym or hyponym of it, in some sense of each.

        Nouns as general as "thing", "object" or "entity" are related to nothing.
        """
        senses_a, senses_b = self._specific(a), self._specific(b)
        if not senses_a or not senses_b:
            return False
        above_a, above_b = (frozenset[str]().union(*map(self.ancestors, s)) for s in (senses_a, senses_b))
        return not above_a.isdisjoint(senses_b) or not above_b.isdisjoint(senses_a)

    def _specific(self, noun: str) -> list[str]:
        """The senses of a noun; none if its first one is general. A person only in its first: a man is no dog."""
        senses = self.senses(noun)
        if not senses or senses[0] in GENERAL:
            return []
        return [s for s in senses if s not in GENERAL and (s == senses[0] or PERSON not in self.ancestors(s))]

    def _is_english(self, word: str) -> bool:
        """Whether this is a word of any part of speech in any inflection, a function word or a number."""
        word = word.lower().removesuffix("'s").strip("'-")
        if not word:
            return False
        if word in FUNCTION_WORDS or word.isdigit() or any(next(self.bases(word, p), "") for p in self.words):
            return True
        return "-" in word and all(self.is_english(part) for part in word.split("-"))


@cache
def wordnet() -> WordNet:
    """WordNet, read once per process. Raises DixitError if the asset is missing."""
    return WordNet(read_json(asset("wordnet") / "wordnet.json"))
