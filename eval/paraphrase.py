"""Captions in other words, by the frozen LLM itself: greedy, after five examples.

A language model of 135M parameters paraphrases badly (docs/experiments/drift.md has how often it keeps the name), so a
gap that is lost shows little. The share of paraphrases that keep the name (`paraphrased/keeps_name`) stands beside the
gap that is left. Leaves out a run with LoRA, whose LLM is trained.
"""

from __future__ import annotations

import hashlib

import torch

from dixit.models.llm import max_positions
from dixit.models.speaker import Speaker

PROMPT = """Each line says the same thing twice, in different words.
A small dog. = A little puppy.
A red car. = An automobile of red colour.
A man riding a bicycle. = A cyclist on his bike.
Two green cups. = A pair of mugs that are green.
An old house. = An aged building.
"""
VERSION = hashlib.sha256(PROMPT.encode()).hexdigest()[:8]
TOKENS = 16  # of a paraphrase, at most
BATCH = 64


def can_paraphrase(speaker: Speaker) -> bool:
    """Whether the LLM is frozen and has positions enough for the examples, a caption and its paraphrase."""
    limit = max_positions(speaker.llm.config)
    needed = len(speaker.tokenizer(PROMPT)["input_ids"]) + 2 * speaker.config.max_tokens + TOKENS
    return not speaker.config.lora_rank and (limit is None or limit >= needed)


@torch.no_grad()
def paraphrase(speaker: Speaker, texts: list[str]) -> list[str]:
    """Each caption in other words, a function of the LLM and the caption; one without an answer stays as it is.

    The examples run once, equal captions once, those with the same number of tokens together.
    """
    tokenizer, decoder, device = speaker.tokenizer, speaker.decoder, speaker.device
    prompt = torch.tensor([tokenizer(PROMPT)["input_ids"]], device=device)
    cache, _ = decoder.prefill(speaker.llm.get_input_embeddings()(prompt))
    by_length: dict[int, list[tuple[str, list[int]]]] = {}
    for text in sorted(set(texts)):
        ids = tokenizer(f"{text} =", add_special_tokens=False)["input_ids"]
        by_length.setdefault(len(ids), []).append((text, ids))
    found: dict[str, str] = {}
    for length, group in by_length.items():
        for part in (group[start:start + BATCH] for start in range(0, len(group), BATCH)):
            first = torch.zeros(len(part), dtype=torch.long, device=device)
            own = decoder.select(cache, first, room=length + TOKENS)
            said, rows = torch.tensor([ids for _, ids in part], device=device), first[:, None][:, :0]
            for _ in range(TOKENS):
                said = decoder.logits(decoder.extend(own, said)[:, -1]).argmax(-1)[:, None]
                rows = torch.cat([rows, said], 1)
                answers = [_first_line(speaker, row) for row in rows.tolist()]
                if all(ended for _, ended in answers):
                    break
            found |= {text: answer or text for (text, _), (answer, _) in zip(part, answers, strict=True)}
    return [found[text] for text in texts]


def _first_line(speaker: Speaker, tokens: list[int]) -> tuple[str, bool]:
    """The text up to a line break or the end token, and whether there is one."""
    kept = tokens[:tokens.index(speaker.eos)] if speaker.eos in tokens else tokens
    line, broken, _ = speaker.tokenizer.decode(kept, skip_special_tokens=True).lstrip().partition("\n")
    return line.strip(), bool(broken) or len(kept) < len(tokens)
