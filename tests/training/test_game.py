"""The game: every reward against numbers worked out by hand, candidates that keep their promises."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dixit.common import DixitError, words
from dixit.config import ListenerConfig, load_config
from dixit.data import scenes
from dixit.data.images import load
from dixit.data.scenes import WORD_CLASSES, scene_words
from dixit.models.clip import Clip, load_clip
from dixit.models.listeners import AttributeListener, ClipListener, score_all
from dixit.training import game, policy
from dixit.training.candidates import draw_candidates, draw_hard_candidates, nearest_images

SIGNED = torch.tensor([1.0, -1.0])
KINDS = ("sub_logp", "sub_prob", "sub_acc", "sub_chance", "product", "dixit")


def logits_of(*beliefs: list[float]) -> torch.Tensor:
    """Logits (L, 1, C) of listeners that hold these beliefs over the candidates, target first."""
    return torch.tensor(beliefs).log()[:, None]


# Listener 1 believes 1/2 in the target, listener 2 1/4; three candidates, chance is 1/3.
HALF_QUARTER = logits_of([0.5, 0.3, 0.2], [0.25, 0.5, 0.25])


@pytest.mark.parametrize(("kind", "expected"), [
    ("sub_logp", math.log(0.5) - math.log(0.25)),
    ("sub_prob", 0.25),
    ("sub_acc", 1.0),
    ("sub_chance", math.log(0.5)),  # 1/4 is below chance: it counts nothing
    ("product", math.log(0.5) + math.log(0.75)),
    ("dixit", 3 * (1 - 0.5 * 0.25 - 0.5 * 0.75)),
])
def test_rewards_by_hand(kind, expected):
    assert float(game.listener_reward(kind, HALF_QUARTER, SIGNED)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("kind", "expected"), [
    ("sub_logp", 2 * math.log(0.2) - 0.5 * math.log(0.6) + 1.5 * math.log(0.9)),
    ("sub_prob", 2 * 0.2 - 0.5 * 0.6 + 1.5 * 0.9),
    ("sub_acc", 2 * 0 - 0.5 * 1 + 1.5 * 1),
    ("sub_chance", 2 * math.log(0.2) - 0.5 * math.log(0.6 * 3) + 1.5 * math.log(0.9)),
    ("product", 2 * math.log(0.2) + 0.5 * math.log(0.4) + 1.5 * math.log(0.9)),
    ("dixit", 3 * (1 - 0.2 * 0.6 * 0.9 - 0.8 * 0.4 * 0.1)),
])
def test_rewards_of_three_weighted_listeners_by_hand(kind, expected):
    logits = logits_of([0.2, 0.5, 0.3], [0.6, 0.2, 0.2], [0.9, 0.05, 0.05])
    weights = torch.tensor([2.0, -0.5, 1.5])
    assert float(game.listener_reward(kind, logits, weights)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("kind", "expected"), [
    ("sub_logp", [math.log(0.2), math.log(0.6), math.log(0.9)]), ("sub_prob", [0.2, 0.6, 0.9]), ("sub_acc", [0, 1, 1]),
    ("sub_chance", [math.log(0.2), math.log(0.6 * 3), math.log(0.9)]),
    ("product", [math.log(0.2), -math.log(0.4), math.log(0.9)]), ("dixit", [0.2, 0.6, 0.9]),
])
def test_the_terms_of_three_listeners_by_hand(kind, expected):
    logits = logits_of([0.2, 0.5, 0.3], [0.6, 0.2, 0.2], [0.9, 0.05, 0.05])
    weights = torch.tensor([2.0, -0.5, 1.5])
    terms = game.listener_terms(kind, logits, weights[:, None])
    assert terms.squeeze(1).tolist() == pytest.approx(expected, abs=1e-6)
    if kind != "dixit":
        assert torch.equal((weights[:, None] * terms).sum(0), game.listener_reward(kind, logits, weights))


TERMS = torch.tensor([[[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]], [[0.0, math.nan, 8.0], [math.inf, math.nan, 3.0]]])


def test_group_statistics_by_hand():
    mean, std = game.group_statistics(TERMS)
    assert mean.tolist() == [[3.0, 5.0], [4.0, 3.0]]
    # sqrt((4 + 1 + 9) / 2); equal; sqrt(16 + 16) of the two that are finite; one alone has no deviation.
    torch.testing.assert_close(std, torch.tensor([[7**0.5, 0.0], [32**0.5, 0.0]]))
    assert [x.tolist() for x in game.group_statistics(torch.full((1, 1, 2), math.nan))] == [[[0.0]], [[0.0]]]


def test_normalised_terms_by_hand():
    found = game.normalised_terms(TERMS, epsilon=0.0001)
    torch.testing.assert_close(found[0, 0], torch.tensor([-2.0, -1.0, 3.0]) / (7**0.5 + 0.0001))
    torch.testing.assert_close(found[1, 0], torch.tensor([-4.0, 0.0, 4.0]) / (32**0.5 + 0.0001))
    assert found[:, 1].tolist() == [[0.0] * 3] * 2  # without two different rewards there is nothing to compare
    torch.testing.assert_close(found[0], policy.group_advantage(TERMS[0]))


def test_a_normalised_listener_counts_by_its_weight_and_not_by_its_scale():
    few = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    found = game.normalised_terms(few)
    torch.testing.assert_close(game.normalised_terms(few * torch.tensor([1.0, 300.0])[:, None, None] - 7), found,
                               atol=1e-3, rtol=1e-3)


def test_nan_of_one_listener_leaves_the_others():
    broken = torch.stack([TERMS[0], torch.full((2, 3), math.nan)])
    found = game.normalised_terms(broken)
    assert torch.equal(found[0], game.normalised_terms(TERMS)[0]) and not found[1].any()


def test_an_unknown_reward_is_refused():
    with pytest.raises(DixitError, match="unknown reward"):
        game.listener_reward("points", HALF_QUARTER, SIGNED)


@pytest.mark.parametrize("kind", ["sub_logp", "sub_prob", "sub_acc"])
def test_identical_listeners_give_exactly_nothing(kind):
    one = torch.randn(1, 50, 7, generator=torch.Generator().manual_seed(0)) * 20
    assert (game.listener_reward(kind, one.repeat(2, 1, 1), SIGNED) == 0).all()


@settings(max_examples=50, deadline=None)
@given(st.floats(0.001, 0.999), st.floats(0.001, 0.999))
def test_dixit_points_of_two_listeners(p1, p2):
    logits = logits_of([p1, 1 - p1], [p2, 1 - p2])
    found = float(game.listener_reward("dixit", logits, SIGNED))
    assert found == pytest.approx(3 * (p1 + p2 - 2 * p1 * p2), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rewards_stay_finite_for_very_sure_listeners(kind):
    sure = torch.tensor([[[80.0, 0.0, -80.0]], [[-80.0, 80.0, 0.0]]])
    for logits in (sure, sure.flip(0)):
        assert game.listener_reward(kind, logits, SIGNED).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_understood_by_the_first_alone_pays_most(kind):
    sure, lost = [0.98, 0.01, 0.01], [0.01, 0.98, 0.01]
    pays = {name: float(game.listener_reward(kind, logits_of(*beliefs), SIGNED)) for name, beliefs in {
        "first": [sure, lost], "both": [sure, sure], "none": [lost, lost], "second": [lost, sure]}.items()}
    others = [v for k, v in pays.items() if k != "first" and not (kind == "dixit" and k == "second")]
    assert pays["first"] > max(others)


def test_rewards_ignore_a_shift_and_a_reordering_of_the_distractors():
    logits = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    other = logits[..., [0, 3, 5, 1, 2, 4]] + 7
    for kind in KINDS:
        torch.testing.assert_close(*(game.listener_reward(kind, x, SIGNED) for x in (logits, other)),
                                   atol=1e-5, rtol=1e-4)


def test_hits_share_ties():
    logits = torch.tensor([[[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [3.0, 3.0, 0.0], [0.0, 0.0, 0.0], [1.0, 2.0, 2.0]]])
    assert game.hits(logits)[0].tolist() == pytest.approx([1, 0, 1 / 2, 1 / 3, 0])
    assert game.hits(torch.full((1, 1, 3), math.nan)).tolist() == [[0.0]]


def test_target_logp_by_hand():
    assert game.target_logp(HALF_QUARTER).flatten().tolist() == pytest.approx([math.log(0.5), math.log(0.25)])


# --- candidates -------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 12), st.integers(0, 20), st.integers(0, 1000))
def test_candidates_hold_the_target_first_and_no_image_twice(candidates, spare, step):
    pool = np.arange(100, 100 + candidates + spare)
    targets = pool[:: 3]
    rows = draw_candidates(targets, pool, candidates, 0, step)
    assert rows.shape == (len(targets), candidates)
    for target, row in zip(targets, rows.tolist(), strict=True):
        assert row[0] == target and len(set(row)) == candidates and set(row) <= set(pool.tolist())


def test_candidates_are_pure_in_their_key():
    targets, pool = np.arange(8), np.arange(50)
    first = draw_candidates(targets, pool, 10, 0, 3)
    assert torch.equal(first, draw_candidates(targets, pool, 10, 0, 3))
    assert not torch.equal(first, draw_candidates(targets, pool, 10, 0, 4))
    assert not torch.equal(first, draw_candidates(targets, pool, 10, 1, 3))


def test_every_other_image_is_a_distractor_equally_often():
    rows = draw_candidates(np.zeros(4000, dtype=np.int64), np.arange(5), 3, 0)
    counts = torch.bincount(rows[:, 1:].flatten(), minlength=5)
    assert counts[0] == 0 and (counts[1:] - 2000).abs().max() < 5 * (4000 * 0.5 * 0.5) ** 0.5


def test_too_few_images_are_refused():
    with pytest.raises(DixitError, match="game.candidates 6"):
        draw_candidates(np.arange(2), np.arange(5), 6, 0)
    assert draw_candidates(np.arange(2), np.arange(5), 5, 0).sort(1).values.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_batches_are_pure_and_without_repeats():
    first = game.batch_indices(0, 7, 16, 40)
    assert (first == game.batch_indices(0, 7, 16, 40)).all() and len(set(first.tolist())) == 16
    assert (first != game.batch_indices(0, 8, 16, 40)).any()
    assert sorted(game.batch_indices(0, 0, 40, 40).tolist()) == list(range(40))
    with pytest.raises(DixitError, match="train.batch 41"):
        game.batch_indices(0, 0, 41, 40)


def test_nearest_images_by_hand():
    angles = torch.tensor([0.0, 0.1, 0.3, 1.5, 1.6])
    points = torch.stack([angles.cos(), angles.sin()], 1)
    assert nearest_images(points, 2).tolist() == [[1, 2], [0, 2], [1, 0], [4, 2], [3, 2]]
    assert nearest_images(points, 99).shape == (5, 4)


def test_nearest_agrees_over_the_seams_of_its_chunks():
    points = torch.nn.functional.normalize(torch.randn(600, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    similarity = (points @ points.T).fill_diagonal_(-9)
    assert (torch.from_numpy(nearest_images(points, 1))[:, 0] == similarity.argmax(1)).all()


def test_hard_candidates_come_from_the_target_s_neighbours():
    neighbours = np.stack([np.roll(np.arange(20), -i)[1:7] for i in range(20)])
    targets = np.array([3, 19, 0, 3])
    rows = draw_hard_candidates(targets, neighbours, 5, 0, 1)
    for target, row in zip(targets, rows.tolist(), strict=True):
        assert row[0] == target and len(set(row)) == 5 and set(row[1:]) <= set(neighbours[target].tolist())
    assert torch.equal(rows, draw_hard_candidates(targets, neighbours, 5, 0, 1))
    assert not torch.equal(rows, draw_hard_candidates(targets, neighbours, 5, 0, 2))


# --- the total and its terms ------------------------------------------------------------------------------------


def test_the_total_is_the_weighted_sum_of_the_named_terms():
    terms = {"listeners": torch.tensor([1.0, 2.0]), "length": torch.tensor([3.0, 5.0]),
             "kl": torch.tensor([-1.0, 4.0])}
    found = game.total_reward(terms, {"length": 0.1, "kl": 0.5})
    assert found.tolist() == pytest.approx([1 - 0.3 + 0.5, 2 - 0.5 - 2])
    assert game.total_reward({"listeners": terms["listeners"]}, {}).tolist() == [1.0, 2.0]


def test_repetition_counts_words_said_again():
    texts = ["red red red", "a red and a blue", "Big big, star", ""]
    assert game.repetition(texts).tolist() == [2.0, 0.0, 1.0, 0.0]


def test_caption_lengths():
    assert game.caption_lengths(torch.tensor([[True, True, False], [True, False, False]])).tolist() == [2.0, 1.0]


# --- listeners --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def eye(tiny) -> Clip:
    return load_clip(str(tiny.clip))


@pytest.fixture
def images(eye) -> torch.Tensor:
    pictures = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    return eye.embed_images(pictures, "colour")


def test_a_listener_scores_by_scale_and_cosine(eye, images):
    candidates = torch.tensor([[0, 1], [2, 0]])
    scores = ClipListener(eye, images, ListenerConfig("all")).score(["a red circle", "big"], candidates)
    words = eye.embed_texts(["a red circle", "big"])
    torch.testing.assert_close(words.norm(dim=1), torch.ones(2))
    expected = [[float(eye.scale * words[s] @ images[c]) for c in row] for s, row in enumerate(candidates.tolist())]
    torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-4, rtol=0)


def test_a_listener_hears_only_the_words_it_knows(eye, images):
    every = torch.arange(4).expand(2, 4)
    some, free = (ClipListener(eye, images, ListenerConfig("l", vocabulary=v)) for v in (("red", "big"), ()))
    assert some.word_filter.apply("A Big red circle.") == "big red"
    heard = some.score(["a red circle", "circle"], every)
    torch.testing.assert_close(heard[:1], free.score(["red"], every[:1]), atol=1e-5, rtol=0)
    assert (heard[1] == 0).all()
    shapes = ClipListener(eye, images, ListenerConfig("l", domain="shape"))
    assert shapes.word_filter.apply("a big red circle, at the top") == "a circle at the"
    assert torch.equal(*(shapes.score([f"a {c} circle"], every[:1]) for c in ("red", "blue")))
    assert not torch.equal(*(free.score([f"a {c} circle"], every[:1]) for c in ("red", "blue")))
    with pytest.raises(DixitError, match="unknown listener domain 'shapes'"):
        ClipListener(eye, images, ListenerConfig("l", domain="shapes"))


def test_a_german_listener_reads_german_only(eye, images):
    hearing = ClipListener(eye, images, ListenerConfig("l", language="german")).word_filter
    assert hearing.apply("Ein roter Kreis und a red star") == "one red circle and"
    assert hearing.apply("an orange ring") == "orange ring"  # the same in both languages


def test_a_listener_of_records_counts_true_words_against_false_ones(home):
    scenes_ = load(load_config(home.game_config).data, "validation")
    everyone = torch.arange(len(scenes_))
    texts = [scenes.full_caption(json.loads(r)) for r in scenes_["record"]]
    listener = AttributeListener(scenes_, ListenerConfig("l", kind="attributes"))
    logits = listener.score(texts, everyone.expand(len(texts), -1))
    said = [words(t) for t in texts]
    truth = [scene_words(json.loads(r)) for r in scenes_["record"]]
    known = frozenset().union(*WORD_CLASSES.values())
    left, expected = Counter(truth[7]), 0.0
    for word in (w for w in said[2] if w in known):
        expected += 3.0 if left[word] > 0 else -3.0
        left[word] -= 1
    assert logits[2, 7] == expected
    assert (logits.diagonal() == logits.max(1).values).all()  # its own caption is true of a scene in every word
    colour = next(w for w in truth[0] if w in scenes.COLOURS)  # once more than there are things of that colour
    texts = [" ".join([colour] * times) for times in (truth[0][colour], truth[0][colour] + 1)]
    few, many = listener.score(texts, torch.zeros(2, 1, dtype=torch.long)).squeeze(1)
    assert few == 3.0 * truth[0][colour] and many == few - 3.0
    deaf = AttributeListener(scenes_, ListenerConfig("l", kind="attributes", domain="shape"))
    assert (deaf.score(["a red one", "a"], everyone.expand(2, -1)) == 0).all()
    with pytest.raises(DixitError, match="listener 'l' reads scene records"):
        AttributeListener(scenes_.map(lambda _: {"record": ""}), ListenerConfig("l"))


def test_a_learning_listener_learns_to_find_the_targets(eye, images):
    listener = ClipListener(eye, images, ListenerConfig("l", learning_rate=0.05))
    texts, candidates = ["a red circle", "two big stars"], torch.tensor([[0, 1, 2, 3], [1, 0, 2, 3]])
    before = listener.score(texts, candidates)
    torch.testing.assert_close(before, ClipListener(eye, images, ListenerConfig("l")).score(texts, candidates),
                               atol=1e-4, rtol=0)
    for _ in range(20):
        listener.text_map -= listener.learning_rate * listener.text_map_gradient(texts, candidates)
    assert (game.target_logp(listener.score(texts, candidates)[None]) > game.target_logp(before[None]) + 0.1).all()
    assert not listener.text_map.requires_grad


def test_gap_and_scoring_rounds():
    hits = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.5]])
    assert game.gap(hits, torch.tensor([1.0, -1.0, 0.5])).tolist() == [1.0, 0.0, 0.25]
    assert game.gap(hits, torch.tensor([1.0, 1.0, 2.0])).tolist() == pytest.approx([2 / 3, 1.0, 1 / 6])
    assert game.scoring_rounds(hits).tolist() == [1.0, 0.0, 0.5]


def test_a_sampled_audience_is_one_for_and_one_against():
    weights = torch.tensor([1.0, 0.5, -1.0, -0.25])
    drawn = game.sampled_audience(weights, 200, 3, 7)
    assert drawn.shape == (4, 200) and torch.equal(drawn, game.sampled_audience(weights, 200, 3, 7))
    assert ((drawn > 0).sum(0) == 1).all() and ((drawn < 0).sum(0) == 1).all()
    assert all(set(row.tolist()) == {0.0, float(w)} for row, w in zip(drawn, weights, strict=True))
    logits = torch.randn(4, 200, 5, generator=torch.Generator().manual_seed(0))
    p = logits.softmax(-1)[..., 0]
    torch.testing.assert_close(game.listener_reward("sub_prob", logits, drawn), (drawn * p).sum(0))
    assert (game.sampled_audience(torch.tensor([2.0]), 3, 0) == 2).all()


def test_a_shuffled_audience_deals_the_same_weights_anew():
    weights = torch.tensor([1.0, -1.0, 0.5])
    drawn = game.shuffled_audience(weights, 300, 3, 7)
    assert torch.equal(drawn, game.shuffled_audience(weights, 300, 3, 7))
    assert torch.equal(drawn.sort(0).values, weights.sort().values[:, None].expand(3, 300))
    assert ((drawn - weights.mean()).mean(1).abs() < 0.15).all()  # nobody is preferred
    assert not torch.equal(drawn, game.shuffled_audience(weights, 300, 3, 8))


def test_clip_score_pays_likeness_whatever_the_distractors():
    logits = torch.tensor([[[3.0, 9.0], [-1.0, 0.0]], [[5.0, 1.0], [7.0, 2.0]]])
    assert game.listener_reward("clip_score", logits, torch.tensor([1.0, -1.0])).tolist() == [3.0, -1.0]
    assert game.listener_reward("clip_score", logits, torch.tensor([0.5, 2.0])).tolist() == [11.5, 13.5]


def test_equal_texts_are_embedded_alike_in_any_order(eye):
    texts = ["red", "a big star", "red", "blue ring"]
    whole = eye.embed_texts(texts)
    assert torch.equal(whole[0], whole[2])
    torch.testing.assert_close(whole.flip(0), eye.embed_texts(texts[::-1]), atol=1e-6, rtol=0)


def test_a_listener_that_returns_nan_is_named(eye, images):
    good, broken = (ClipListener(eye, x, ListenerConfig("l")) for x in (images, images * math.nan))
    candidates = torch.tensor([[0, 1]])
    assert score_all([good, good], ["red"], candidates).shape == (2, 1, 2)
    with pytest.raises(DixitError, match="listener 2 returned NaN"):
        score_all([good, broken], ["red"], candidates)
    assert score_all([good, broken], ["red"], candidates, allow_nan=True)[0].isfinite().all()


def test_the_commonest_caption():
    assert game.most_common_caption(["a", "b", "b", "c"]) == ("b", 0.5)
    assert game.most_common_caption(["a"] * 3) == ("a", 1.0)


def test_kernels_by_hand():
    square = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]) + 7  # the mean does not count
    assert game.participation_ratio(game.centred_kernel(square)) == pytest.approx(2)
    assert game.participation_ratio(game.centred_kernel(square * torch.tensor([1.0, 0]))) == pytest.approx(1)
    assert game.participation_ratio(game.centred_kernel(torch.ones(4, 2))) == 0  # all alike
    turned = 3 * square @ torch.tensor([[0.6, -0.8], [0.8, 0.6]])  # neither turning nor scaling moves a kernel
    first = game.centred_kernel(square)
    assert game.kernel_distance(first, game.centred_kernel(turned)) == pytest.approx(0, abs=1e-6)
    # One of two equal directions is left: <K, K'> = |K'|^2 and |K|^2 = 2 |K'|^2.
    flat = game.centred_kernel(square * torch.tensor([1.0, 0]))
    assert game.kernel_distance(first, flat) == pytest.approx(1 - 1 / math.sqrt(2))
