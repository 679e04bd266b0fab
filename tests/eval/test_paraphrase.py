"""Paraphrases by the frozen LLM: what it continues greedily, each caption once, computed once."""

from __future__ import annotations

import torch

from dixit.training.runs import load_run
from eval.drift import panel
from eval.evaluate import dataset_of, generate_captions
from eval.paraphrase import PROMPT, TOKENS, can_paraphrase, paraphrase
from eval.picture_metrics import keeps_name


def test_it_is_what_the_llm_continues_greedily(home, game_run):
    speaker = load_run(game_run).speaker
    texts = ["A red circle.", "A small blue star at the top.", "A red circle.", "A ring."]
    found = paraphrase(speaker, texts)
    assert found[0] == found[2] and found == [paraphrase(speaker, [text])[0] for text in texts]
    for text, answer in zip(texts, found, strict=True):
        ids = speaker.tokenizer(PROMPT)["input_ids"]
        ids = ids + speaker.tokenizer(f"{text} =", add_special_tokens=False)["input_ids"]
        told = speaker.llm.generate(torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False,
                                    attention_mask=torch.ones(1, len(ids)), pad_token_id=speaker.eos)
        expected = speaker.tokenizer.decode(told[0, len(ids):], skip_special_tokens=True).strip().split("\n")[0].strip()
        assert answer == (expected or text)


def test_an_llm_that_is_trained_or_too_short_makes_none(home, train, tmp_path):
    train(home.game_config, tmp_path / "run", "train.steps=1", "speaker.lora_rank=2")
    run = load_run(tmp_path / "run")
    assert not can_paraphrase(run.speaker)
    dataset = dataset_of(run.config, "test", 8)
    assert not [key for key in panel(run, dataset, generate_captions(run, dataset))[0]["speakers"]["trained"]
                if key.startswith("paraphrased")]


def test_a_paraphrase_keeps_a_name_by_itself_or_a_related_one():
    assert keeps_name(["A dog.", "A dog.", "A dog.", "Red."], ["A puppy.", "A cat.", "Nothing.", "A dog."]) == [1, 0, 0]
