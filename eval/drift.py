"""Measure language drift: `python -m eval.drift RUN [RUN ...] [eval.images=200 ...]`.

For base, trained, ground-truth and oracle captions, in addition to every figure of eval/evaluate.py:
structure   perplexity; captions without a doubled word; captions that end with a full stop
meaning     BLEU-4 and CIDEr-D against the references; on scenes, the share of claims that are true
use         the gap that remains when captions are rewritten (eval/rewrites.py), or paraphrased by the LLM
            (eval/paraphrase.py; base and trained only)
spill-over  the loss on written captions, and true names of pictures, before and after the game (eval/spill_over.py)
words       distinct-n, vocabulary, commonest caption; words gained and lost
Writes RUN/drift.json, RUN/drift_captions.json, and prints tables; `--frontier PATH` plots gap against drift, a point
per run, and `--keep CONDITION` keeps that plot and its figures in eval/results.

Leaves out a parser: claims and rewrites follow the grammar of the scenes' captions, and two phrases may be true of the
same object. In other captions the rewrites change few words. Without scenes, the ground truth is one of its own
references.

Shapes: S captions (one per image).
"""

from __future__ import annotations

from dixit.common import run_main

from . import commands

if __name__ == "__main__":  # before the imports below, so that --help is quick
    run_main(commands.drift)

import functools
import json
import math
import re
import time
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from jaxtyping import Float, Int
from torch import Tensor

from dixit.common import DixitError, atomic_path, command_line, git_commit, words
from dixit.data import scenes
from dixit.data.images import load
from dixit.models.listeners import score_all
from dixit.training.runs import LoadedRun, load_run, make_listeners

from . import evaluate
from .figures import save_small_png
from .metrics import mean_and_error
from .paraphrase import VERSION, can_paraphrase, paraphrase
from .picture_metrics import keeps_name
from .rewrites import DOUBLED, KINDS, PLAIN, REWRITES
from .spill_over import spill_over
from .tables import RESULTS, Cell, put, rows_of

# --- structure ---

def no_doubled_word(texts: list[str]) -> Float[Tensor, "S"]:
    """1 for each caption that repeats no word directly, as "green green thing" does."""
    return torch.tensor([float(not DOUBLED.search(text)) for text in texts])


def full_stop(texts: list[str]) -> Float[Tensor, "S"]:
    """1 for each caption that ends with a full stop, ! or ?; one cut off at speaker.max_tokens does not."""
    return torch.tensor([float(text.rstrip().endswith((".", "!", "?"))) for text in texts])


# --- similarity to the references ---

def _grams(text: str) -> list[Counter]:
    """Counts of the 1-, 2-, 3- and 4-grams."""
    tokens = words(text)
    return [Counter(tuple(tokens[i:i + n]) for i in range(len(tokens) - n + 1)) for n in (1, 2, 3, 4)]


def bleu_4(texts: list[str], references: list[list[str]]) -> float:
    """BLEU-4 of the whole corpus (Papineni et al. 2002), each caption against its references, the closest in length.

    pycocoevalcap's figure, but exactly 0 where no 4-gram is right.
    """
    right, total, produced, expected = [0] * 4, [0] * 4, 0, 0
    for text, row in zip(texts, references, strict=True):
        length = len(words(text))
        produced += length
        expected += min((abs(n - length), n) for n in (len(words(r)) for r in row))[1]
        allowed = [_grams(r) for r in row]
        for n, counts in enumerate(_grams(text)):
            right[n] += sum(min(c, max(k[n][g] for k in allowed)) for g, c in counts.items())
            total[n] += counts.total()
    if not all(right):
        return 0.0
    precision = math.prod(r / t for r, t in zip(right, total, strict=True)) ** 0.25
    return precision * math.exp(min(0.0, 1 - expected / produced))


def cider_d(texts: list[str], references: list[list[str]]) -> Float[Tensor, "S"]:
    """CIDEr-D of each caption, 0 to 10 (Vedantam et al. 2015): n = 1 to 4, sigma 6, as pycocoevalcap's Cider.

    How rare an n-gram is depends on the references given here, so figures compare only over the same images.
    """
    counts = [[_grams(r) for r in row] for row in references]
    images = [Counter(g for row in counts for g in set().union(*(r[n] for r in row))) for n in range(4)]

    def weighted(grams: list[Counter]) -> list[dict[tuple, float]]:
        return [{g: c * math.log(len(texts) / max(1, images[n][g])) for g, c in grams[n].items()} for n in range(4)]

    def norm(vector: dict[tuple, float]) -> float:
        return math.sqrt(sum(v * v for v in vector.values()))

    scores = []
    for text, row in zip(texts, counts, strict=True):
        grams = _grams(text)
        own = weighted(grams)
        score = 0.0
        for reference in row:
            penalty = math.exp(-(grams[0].total() - reference[0].total()) ** 2 / (2 * 6.0 ** 2))
            for mine, theirs in zip(own, weighted(reference), strict=True):
                shared = sum(min(v, theirs.get(g, 0.0)) * theirs.get(g, 0.0) for g, v in mine.items())
                score += penalty * shared / (norm(mine) * norm(theirs) or 1.0)
        scores.append(10 * score / (4 * len(row)))
    return torch.tensor(scores)


# --- truth ---

def claims(text: str) -> list[dict[str, Any]]:
    """What each noun phrase claims, in the words of the scenes' grammar; phrases without a claim are left out.

    "A big red circle at the top left on a dark background" gives {"of": "object", "size": ["big"],
    "colour": ["red"], "shape": ["circle"], "position": ["top", "left"]} and {"of": "background", "tone": ["dark"]}.
    A phrase ends at "a", "an", "and", a number or a punctuation mark; other words are ignored.
    """
    found: list[dict[str, Any]] = []

    def add(of: str, tokens: list[str]) -> None:
        kinds = KINDS | dict.fromkeys(scenes.TONES, "tone") if of == "background" else KINDS
        claim: dict[str, Any] = {"of": of}
        for word in tokens:
            if word in kinds and word not in claim.setdefault(kinds[word], []):
                claim[kinds[word]].append(word)
        if len(claim) > 1:
            found.append(claim)

    phrase: list[str] = []
    for token in [*re.findall(r"[a-z]+|[,.;:!?]", text.lower()), "."]:
        word = PLAIN.get(token, token)
        if word == "background":  # it takes the attributes right before it, the object all others
            start = len(phrase)
            while start and (phrase[start - 1] in KINDS or phrase[start - 1] in scenes.TONES):
                start -= 1
            add("object", phrase[:start])
            add("background", phrase[start:])
            phrase = []
        elif word in ("a", "an", "and", *scenes.COUNTS) or not word.isalpha():
            add("object", phrase)
            phrase = [word]
        else:
            phrase.append(word)
    add("object", phrase)
    return found


def _facts(record: dict) -> list[set[tuple[str, str]]]:
    """A set of true (kind, word) pairs for the background, then one for each object."""
    facts = [set(record["background"].items())]
    for item in record["objects"]:
        row, column = item["cell"]
        own = {(kind, item[kind]) for kind in ("size", "colour", "texture", "shape")}
        facts.append(own | {("position", scenes.ROWS[row]), ("position", scenes.COLUMNS[column])})
    return facts


def _phrase_true(claim: dict[str, Any], facts: list[set[tuple[str, str]]]) -> bool:
    """Whether a claim is true of one object or the background; with a number, of exactly that many objects."""
    claimed = {(kind, word) for kind, own in claim.items() if kind not in ("of", "count") for word in own}
    if claim["of"] == "background":
        return claimed <= facts[0]
    if claim.get("position") == ["centre"]:  # alone, it means the middle of the image (scenes.position)
        claimed.add(("position", "middle"))
    fitting = sum(claimed <= own for own in facts[1:])
    if "count" in claim and claim["count"] != [scenes.COUNTS[fitting - 1]]:
        return False
    return fitting > 0


def faithfulness(texts: list[str], records: list[dict]) -> dict[str, Float[Tensor, "S"]]:
    """The share of each caption's claims that are true of its scene; NaN where it claims nothing.

    "phrases": all attributes of a phrase are true of one object. "words": each word is true of some object or the
    background, a number of all objects together.
    """
    phrases, single = [], []
    for text, record in zip(texts, records, strict=True):
        claimed, facts = claims(text), _facts(record)
        anything = set().union(*facts) | {("count", scenes.COUNTS[len(record["objects"]) - 1])}
        phrases.append([_phrase_true(claim, facts) for claim in claimed])
        single.append([(kind, word) in anything for c in claimed for kind, values in c.items() if kind != "of"
                       for word in values])

    def shares(rows: list[list[bool]]) -> Float[Tensor, "S"]:
        return torch.tensor([sum(row) / len(row) if row else math.nan for row in rows])

    return {"phrases": shares(phrases), "words": shares(single)}


# --- what is left after a rewrite ---

def share_kept(before: dict[str, float], after: dict[str, float]) -> dict[str, float] | None:
    """The share of a gap that remains after a rewrite; None if the gap is within two standard errors of 0.

    The error treats the two as independent: an upper bound, as both are of the same images.
    """
    if abs(before["mean"]) <= 2 * before["se"]:
        return None
    share = after["mean"] / before["mean"]
    error = math.hypot(after["se"], share * before["se"]) / abs(before["mean"])
    return {"mean": share, "se": error, "n": before["n"]}


# --- words ---

def word_shift(before: list[str], after: list[str]) -> list[tuple[str, float, int, int]]:
    """(word, z, count before, count after) of every word, the most gained first.

    z-score of the log-odds ratio under an informative Dirichlet prior (Monroe et al. 2008, eqs. 16-22), the prior
    being the counts of both together.
    """
    old, new = (Counter(w for text in texts for w in words(text)) for texts in (before, after))
    prior = old + new
    if len(prior) < 2:
        return [(w, 0.0, old[w], new[w]) for w in prior]

    def log_odds(word: str, counts: Counter) -> float:
        mass = counts[word] + prior[word]
        return math.log(mass / (counts.total() + prior.total() - mass))

    rows = []
    for word in prior:
        variance = 1 / (old[word] + prior[word]) + 1 / (new[word] + prior[word])
        z = (log_odds(word, new) - log_odds(word, old)) / math.sqrt(variance)
        rows.append((word, z, old[word], new[word]))
    return sorted(rows, key=lambda row: (-row[1], row[0]))


# --- the command ---

GAME = re.compile(r"(training|heldout)/(accuracy/.*|gap)")
COLUMNS = ("training/gap", "heldout/gap", "kl_to_base", "perplexity", "no_doubled_word", "full_stop", "bleu_4",
           "cider_d", "written_loss", "named", "faithful/phrases", "faithful/words", "claims_nothing",
           "rewritten/training/gap_kept", "rewritten/heldout/gap_kept", "distinct_1", "distinct_2", "vocabulary",
           "most_repeated")


KEPT = re.compile(GAME.pattern + r"|(training|heldout)/gap_over_base|kl_to_base|perplexity(_ratio)?|no_doubled_word"
                  r"|faithful/.*|rewritten/.*_kept|most_repeated")  # of a frontier


@torch.no_grad()
def _listener_figures(run: LoadedRun, dataset: Dataset, pools: Int[Tensor, "S C"],
                      captions: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """`evaluate.game_figures` of every set of captions with training and held-out listeners."""
    rows: dict[str, dict[str, Any]] = {name: {} for name in captions}
    for group, listeners in ("training", run.config.listeners), ("heldout", run.config.heldout):
        if listeners:
            made = make_listeners(listeners, dataset, run.speaker.device)
            for name, texts in captions.items():
                rows[name] |= evaluate.game_figures(group, listeners, score_all(made, texts, pools), run.config)
    return rows


def _paraphrased(run: LoadedRun, dataset: Dataset, captions: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Paraphrases of the base and the trained speaker's captions, cached as these are; none where the LLM can make
    none."""
    if not can_paraphrase(run.speaker):
        return {}
    return {name: evaluate.kept(run, module, dataset, f"-paraphrased-{VERSION}", functools.partial(
        paraphrase, run.speaker, captions[name]["texts"])) for name, module in evaluate.speakers_of(run).items()}


def panel(run: LoadedRun, dataset: Dataset,
          captions: dict[str, dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """{"speakers": speaker -> figure, "word_shift": the words gained and lost}, and picks, of the speakers' captions.

    `captions`, the figures and the picks are as in eval.evaluate (`generate_captions`, `measure`).

    Undefined figures are left out: faithfulness without scenes, the kept share of no gap, drift without a base speaker.
    """
    speakers, picks = evaluate.measure(run, dataset, captions)
    rewritten = {f"{name}, {rewrite}": [change(text) for text in own["texts"]]
                 for name, own in captions.items() for rewrite, change in REWRITES.items()}
    rewritten |= {f"{name}, paraphrased": texts for name, texts in _paraphrased(run, dataset, captions).items()}
    with_listeners = _listener_figures(run, dataset, torch.tensor(picks["pools"]), rewritten)
    picks |= {name: {"texts": texts} for name, texts in rewritten.items()}
    references = [list(row) for row in dataset["captions"]]
    records = [json.loads(r) for r in dataset["record"]] if all(dataset["record"]) else []
    for name, row in speakers.items():
        texts = captions[name]["texts"]
        row["no_doubled_word"] = mean_and_error(no_doubled_word(texts))
        row["full_stop"] = mean_and_error(full_stop(texts))
        row["bleu_4"] = bleu_4(texts, references)
        row["cider_d"] = mean_and_error(cider_d(texts, references))
        if records:
            for level, values in faithfulness(texts, records).items():
                empty = values.isnan()
                row["claims_nothing"] = mean_and_error(empty.float())
                if not empty.all():
                    row[f"faithful/{level}"] = mean_and_error(values[~empty])
        for rewrite in (*REWRITES, "paraphrased"):
            other = f"{name}, {rewrite}"
            if other not in rewritten:
                continue
            row |= {f"{rewrite}/{key}": figure for key, figure in with_listeners[other].items() if GAME.fullmatch(key)}
            changed = [float(a != b) for a, b in zip(texts, rewritten[other], strict=True)]
            row[f"{rewrite}/changed"] = mean_and_error(changed)
            if rewrite == "paraphrased" and (same := keeps_name(texts, rewritten[other])):
                row["paraphrased/keeps_name"] = mean_and_error(same)
            for gap in [key for key in ("training/gap", "heldout/gap") if key in row]:
                share = share_kept(row[gap], with_listeners[other][gap])
                if share is not None:
                    row[f"{rewrite}/{gap}_kept"] = share
    for name, row in spill_over(run, dataset, captions).items():
        speakers[name] |= row
    figures: dict[str, Any] = {"speakers": speakers}
    if run.base is None:
        del speakers["trained"]["kl_to_base"]  # eval.evaluate gives 0 where there is nothing to compare with
    else:
        speakers["trained"]["perplexity_ratio"] = (speakers["trained"]["perplexity"]["mean"]
                                                   / speakers["base"]["perplexity"]["mean"])
        shift = word_shift(captions["base"]["texts"], captions["trained"]["texts"])
        figures["word_shift"] = {"gained": [row for row in shift if row[1] > 0][:10],
                                 "lost": [row for row in reversed(shift) if row[1] < 0][:10]}
    return figures, picks


def shift_table(shift: dict[str, list[tuple[str, float, int, int]]]) -> str:
    """A Markdown table of the words gained and lost."""
    lines = ["| words | z | base | trained |", "|---|---|---|---|"]
    lines += [f"| {kind}: {word} | {z:+.1f} | {old} | {new} |" for kind, rows in shift.items()
              for word, z, old, new in rows]
    return "\n".join(lines)


def frontier(path: Path, points: list[tuple[str, dict[str, Any]]]) -> None:
    """A PNG of each run's gap against its drift: KL to base, perplexity over the base speaker's, and true claims.

    `points` are labels and the figures of trained speakers; held-out gaps are hollow.
    """
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4.6), layout="constrained", sharey=True)
    for axis, key, title in zip(axes, ("kl_to_base", "perplexity_ratio", "faithful/words"), (
            "KL to the base speaker, nats per greedy caption", "perplexity over the base speaker's",
            "share of claims that are true"), strict=True):
        for i, (label, row) in enumerate(points):
            if key not in row:
                continue  # images without records
            x = row[key]["mean"] if isinstance(row[key], dict) else row[key]
            for gap, fill in ("training/gap", f"C{i % 10}"), ("heldout/gap", "white"):
                if gap in row:
                    axis.errorbar(x, row[gap]["mean"], row[gap]["se"], marker="o", color=f"C{i % 10}",
                                  markerfacecolor=fill, capsize=2, linestyle="none",
                                  label=label if gap == "training/gap" else None)
        axis.set(xlabel=title)
        axis.margins(x=0.25)
    axes[0].set(ylabel="gap (filled: training, hollow: held-out listeners)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def keep(cell: Cell, points: list[tuple[str, dict[str, Any]]], folder: Path = RESULTS) -> None:
    """Write each run's trained speaker, under the run's label, and its base speaker to the table of the frontier."""
    speakers = {name: row for label, found in points
                for name, row in ((label, found["trained"]), (f"{label}, base speaker", found["base"]))}
    put(cell, [row for name, figures in speakers.items() for row in rows_of(cell, name, {
        key: figure for key, figure in figures.items() if KEPT.fullmatch(key)})], folder)


def main(arguments: Namespace) -> None:
    overrides = [word for word in arguments.run if "=" in word and not Path(word).is_dir()]
    folders = [Path(word) for word in arguments.run if word not in overrides]
    if not folders:
        raise DixitError("no run named; give a run's folder, e.g. runs/colour_vs_grey")
    if arguments.keep and not arguments.frontier:
        raise DixitError("--keep keeps a frontier; add --frontier PATH")
    points: list[tuple[str, dict[str, Any]]] = []
    seeds: dict[str, None] = {}
    for folder in folders:
        began = time.perf_counter()
        run = load_run(folder, overrides)
        config = run.config
        if not config.listeners:
            raise DixitError(f"{folder} has no listeners, so no gap; name a run of the game")
        if arguments.frontier and run.base is None:
            raise DixitError(f"{folder} has no base speaker (speaker.init, no LoRA) to have drifted from; "
                             "leave it out or drop --frontier")
        dataset = load(config.data, config.eval.split)
        dataset = dataset.select(range(min(config.eval.images, len(dataset))))
        figures, picks = panel(run, dataset, evaluate.generate_captions(run, dataset))
        path = evaluate.write_results(run, "drift", figures, picks, time.perf_counter() - began)
        print(f"\n{folder}\n{evaluate.table(figures['speakers'], COLUMNS)}")
        if "word_shift" in figures:
            print("\n" + shift_table(figures["word_shift"]))
        print(f"\nwritten to {path}")
        points.append((f"{folder.name} (kl_cost {config.game.kl_cost:g})", figures["speakers"]))
        seeds[str(config.seed)] = None
    if arguments.frontier:
        frontier(arguments.frontier, [(label, found["trained"]) for label, found in points])
        print(f"written to {arguments.frontier}")
    if arguments.keep:
        keep(Cell("frontier", arguments.keep, " ".join(seeds), command_line(), "", git_commit()), points)
        save_small_png(arguments.frontier, RESULTS / "frontier" / f"{arguments.keep}.png")
