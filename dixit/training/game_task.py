"""The game as a training: sample captions, let the listeners pick, reinforce what pays. Rewards only.

`TASKS` names every training of the project. Leaves out the loop (train.py), what comes before the game
(warm_start.py), and the full evaluation on the test split (eval/).

Shapes: B images, N captions per image, S = B*N, M pools of C candidates, L listeners.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor

from dixit.common import DixitError, rng
from dixit.config import Config
from dixit.data.images import load
from dixit.models.features import prefetch
from dixit.models.listeners import ClipListener, make_listeners, score_all
from dixit.training import audiences, continual, game, policy
from dixit.training.loop import Task, local_slice, local_weight
from dixit.training.runs import patch_batch, speaker_and_patches
from dixit.training.warm_start import CaptionTask, ClipTask, WordTask


class GameTask(Task):
    """Listener subtraction: sample captions, let the listeners pick, reinforce what pays. Rewards only."""

    def __init__(self, config: Config, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        device = accelerator.device
        self.data, self.held = load(config.data, "train", training=True), load(config.data, "validation")
        for split, images in (("training", self.data), ("validation", self.held)):
            if len(images) < config.game.candidates:
                raise DixitError(f"game.candidates {config.game.candidates} is more than the {len(images)} images "
                                 f"of the {split} split")
        self.speaker, self.store, self.validation_store = speaker_and_patches(config, self.data, self.held, device)
        self.listeners = make_listeners(config.listeners, self.data, device)
        self.validation_listeners = make_listeners(config.listeners, self.held, device)
        for listener, other in zip(self.listeners, self.validation_listeners, strict=True):
            if isinstance(listener, ClipListener) and isinstance(other, ClipListener):
                other.text_map = listener.text_map  # they hear alike
        self.weights = torch.tensor([c.weight for c in config.listeners], device=device)
        self.pairs = audiences.listener_indices(config.audiences, [c.name for c in config.listeners])
        self.named = self.validation_named = None  # what is to be observed of the listeners
        if config.speaker.audience_width and not config.speaker.gated_units:
            self.named = audiences.hits_by_attribute(self.listeners, self.data, config.game.candidates, config.seed)
            self.validation_named = audiences.hits_by_attribute(self.validation_listeners, self.held, config.game.candidates, config.seed)
        # Of several sets, scenes are told from scenes, and others from others: else one word for the set would do.
        self.scene = np.array([bool(r) for r in self.data["record"]]) if "+" in config.data.name else None
        self.neighbours = None
        if config.game.distractors == "hard":
            if not isinstance(self.listeners[0], ClipListener):
                raise DixitError("game.distractors hard needs listeners[0] of kind clip, to say what is near")
            self.neighbours = game.nearest_images(self.listeners[0].images.cpu(), 4 * (config.game.candidates - 1))
        self.trained = self.speaker.trained
        self.units = continual.gated_units_of(self.trained)
        self.base = copy.deepcopy(self.trained).requires_grad_(False)
        self.baseline: float | None = None
        self.rollouts: dict[int, tuple] = {}  # ppo: the rollout that further epochs go over

    def candidates(self, step: int, index: Int[np.ndarray, "B"]) -> Int[Tensor, "B M C"]:
        """M pools of candidates for each image of a global batch, a pure function of (seed, step)."""
        c, m, key = self.config.game.candidates, self.config.game.pools, (self.config.seed, step)
        targets = np.repeat(index, m)
        if self.neighbours is not None:
            drawn = game.draw_hard_candidates(targets, self.neighbours, c, *key)
        elif self.config.game.distractors == "in_batch":
            drawn = game.draw_candidates(targets, index, c, *key)
        elif self.scene is None:
            drawn = game.draw_candidates(targets, np.arange(len(self.data)), c, *key)
        else:
            drawn = torch.empty(len(targets), c, dtype=torch.long)
            for scene in True, False:
                mine = self.scene[targets] == scene
                if mine.any():
                    drawn[mine] = game.draw_candidates(targets[mine], np.flatnonzero(self.scene == scene), c, *key,
                                                       "scenes" if scene else "others")
        return drawn.unflatten(0, (-1, m))

    def audience(self, step: int) -> Float[Tensor, "L B"]:
        """Each listener's weight in each round of a global batch, a pure function of (seed, step)."""
        rounds = self.config.train.batch
        if self.pairs:
            return audiences.round_weights(self.round_pairs(step), len(self.listeners)).to(self.weights.device)
        if self.config.game.audience == "all":
            return self.weights[:, None].expand(-1, rounds)
        draw = game.sampled_audience if self.config.game.audience == "sampled" else game.shuffled_audience
        return draw(self.weights.cpu(), rounds, self.config.seed, step).to(self.weights.device)

    def round_pairs(self, step: int) -> list[tuple[int, int]]:
        """The audience of each round of a global batch, a pure function of (seed, step)."""
        return [self.pairs[i] for i in continual.audience_indices(self.config, step)]

    def context(self, step: int) -> Float[Tensor, "B c"] | None:
        """What the speaker knows of each round's audience, a pure function of (seed, step)."""
        if self.config.speaker.gated_units:
            return continual.audience_codes_at(self.config, step).to(self.speaker.device)
        if self.named is None:
            return None
        config, pairs = self.config, self.round_pairs(step)
        picks = rng("number of picks", config.seed, step).choice(config.picks, size=len(pairs)).tolist()
        profile = audiences.profiles(self.named, len(pairs), picks, config.seed, step)
        return audiences.audience_vectors(profile, pairs).to(self.speaker.device)

    def reward(self, listeners: list, prefix_patches: Tensor, texts: list[str], tokens: Tensor, mask: Tensor,
               logp: Tensor, candidates: Int[Tensor, "S M C"],
               weights: Float[Tensor, "L S"]) -> tuple[Tensor, dict[str, float], Tensor]:
        """Total reward (S,), the mean of each named term, and the listeners' logits (L, S*M, C)."""
        config = self.config.game
        tried = [text for text in texts for _ in range(config.pools)]
        logits = score_all(listeners, tried, candidates.flatten(0, 1))
        paid = game.listener_reward(config.reward, logits, weights.repeat_interleave(config.pools, 1))  # (S*M,)
        terms = {"listeners": paid.unflatten(0, (-1, config.pools)).mean(1)}
        costs = {}
        if config.length_cost:
            terms["length"], costs["length"] = game.caption_lengths(mask), config.length_cost
        if config.repetition_cost:
            terms["repetition"] = game.repetition(texts).to(mask.device)
            costs["repetition"] = config.repetition_cost
        if config.kl_cost:
            base = self.speaker.logprobs(self.base(prefix_patches), tokens, mask, self.config.policy.temperature)
            terms["kl"], costs["kl"] = ((logp - base) * mask).sum(1), config.kl_cost
        total = game.total_reward(terms, costs)
        return total, {f"term/{k}": float(v.mean()) for k, v in terms.items()}, logits

    def loss(self, step: int, part: int) -> tuple[Tensor, dict[str, float]]:
        config, settings, rules = self.config, self.config.train, self.config.policy
        seed, n, speaker = config.seed, rules.samples, self.speaker
        rollout = step - step % rules.epochs if rules.algorithm == "ppo" else step
        if config.continual.remedy == "ewc_nodes" and part == 0:
            self.consolidate_units(step)
        index = game.batch_indices(seed, rollout, settings.batch, len(self.data))
        candidates = self.candidates(rollout, index)
        mine = local_slice(settings.batch, settings.accumulate, part, self.accelerator)
        index, candidates = index[mine], candidates[mine].repeat_interleave(n, 0)
        weights = self.audience(rollout)[:, mine]
        draws = rng("sample", seed, rollout).random((settings.batch, n, config.speaker.max_tokens), dtype=np.float32)
        uniforms = torch.from_numpy(draws[mine]).flatten(0, 1).to(speaker.device)
        patches = patch_batch(self.store, index, speaker.device)
        if part == 0:
            prefetch(self.store, game.batch_indices(seed, step + 1, settings.batch, len(self.data)))

        context = self.context(rollout)
        prefix = self.trained(patches) if context is None else self.trained(patches, context[mine])
        if rules.algorithm == "ppo" and step % rules.epochs:
            tokens, mask, old, advantage, figures = self.rollouts[part]
            logp = speaker.logprobs(prefix, tokens, mask, rules.temperature)
            return policy.clipped_loss(logp, old, mask, advantage, rules.clip_ratio), figures
        tokens, mask, _ = speaker.sample(prefix.detach(), uniforms, rules.temperature)
        texts = speaker.decode(tokens, mask)
        logp = speaker.logprobs(prefix, tokens, mask, rules.temperature)
        with torch.no_grad():
            reward, figures, logits = self.reward(self.listeners, patches, texts, tokens, mask, logp.detach(),
                                                  candidates, weights.repeat_interleave(n, 1))
        self.teach_listeners(texts, candidates)
        grouped = reward.unflatten(0, (-1, n))
        advantage = self.advantage(grouped, prefix.detach(), patches, candidates[::n], weights).flatten()
        if rules.algorithm == "ppo":
            loss = policy.clipped_loss(logp, logp.detach(), mask, advantage, rules.clip_ratio)
        else:
            loss = policy.policy_loss(logp, mask, advantage)
        for units in self.units if config.continual.remedy == "ewc_nodes" else ():
            loss = loss + config.continual.ewc_strength * continual.ewc_penalty(units)
        listening = weights.repeat_interleave(n * config.game.pools, 1) != 0  # (L, S*M)
        hit = (game.hits(logits) * listening).sum(1) / listening.sum(1).clamp(min=1)
        figures |= {f"accuracy/{c.name}": h for c, h in zip(config.listeners, hit.tolist(), strict=True)}
        figures |= {"reward": float(reward.mean()), "reward_std": float(grouped.std(1).mean()),
                    "length": float(game.caption_lengths(mask).mean()),
                    "entropy": float(-(logp.detach() * mask).sum() / mask.sum()),
                    "frac_reward_zero_std": float((grouped.std(1) < 1e-6).float().mean())}
        if rules.algorithm == "ppo":
            self.rollouts[part] = (tokens, mask, logp.detach(), advantage, figures)
        return loss, figures

    def consolidate_units(self, step: int) -> None:
        """At the first step of a new audience: hold the units that what is said to the one before depends on."""
        if not step or continual.block_index(self.config, step) == continual.block_index(self.config, step - 1):
            return
        index = game.batch_indices(self.config.seed, step - 1, self.config.train.batch, len(self.data))
        draws = rng("importance", self.config.seed, step).random((len(index), self.config.speaker.max_tokens))
        context = self.context(step - 1)
        assert context is not None
        found = continual.unit_importance(
            self.speaker, self.accelerator.unwrap_model(self.trained),
            patch_batch(self.store, index, self.speaker.device), context,
            torch.from_numpy(draws.astype(np.float32)).to(self.speaker.device))
        for units, used in zip(self.units, found, strict=True):
            continual.consolidate(units, used)

    def after_step(self, step: int) -> None:
        """Hebbian gating: Oja's rule on the same rounds, of all processes."""
        if self.config.continual.remedy.startswith("hebbian_gate"):
            context = self.context(step)
            assert context is not None
            for units in self.units:
                continual.oja(units.gate.weight, context, self.config.continual.hebbian_rate)

    def teach_listeners(self, texts: list[str], candidates: Int[Tensor, "S M C"]) -> None:
        """A step of gradient descent for listeners that learn, after they have been asked."""
        tried = [text for text in texts for _ in range(candidates.shape[1])]
        for listener in self.listeners:
            if isinstance(listener, ClipListener) and listener.text_map is not None:
                slope = listener.text_map_gradient(tried, candidates.flatten(0, 1)) * self.weight_of(len(texts))
                slope = self.accelerator.reduce(slope, reduction="mean")
                if slope.isfinite().all():
                    listener.text_map -= listener.learning_rate * slope

    def weight_of(self, captions: int) -> float:
        """What a mean over this process's captions of a micro-batch counts for in the mean over all processes."""
        all_captions = self.config.train.batch // self.config.train.accumulate * self.config.policy.samples
        return local_weight(all_captions, captions, self.accelerator.num_processes)

    def advantage(self, reward: Float[Tensor, "B N"], prefix: Tensor, patches: Tensor,
                  candidates: Int[Tensor, "B M C"], weights: Float[Tensor, "L B"]) -> Float[Tensor, "B N"]:
        """The advantage that `policy.algorithm` asks for (ppo: leave-one-out)."""
        rules = self.config.policy
        if rules.algorithm == "reinforce":
            mean = float(self.accelerator.reduce(reward.mean() * self.weight_of(reward.numel()), reduction="mean"))
            baseline = mean if self.baseline is None else self.baseline
            if math.isfinite(mean):  # a step that is skipped leaves no trace
                self.baseline = rules.baseline_decay * baseline + (1 - rules.baseline_decay) * mean
            return policy.running_mean_advantage(reward, baseline)
        if rules.algorithm == "self_critical":
            tokens, mask, logp = self.speaker.sample(prefix)
            texts = self.speaker.decode(tokens, mask)
            greedy, _, _ = self.reward(self.listeners, patches, texts, tokens, mask, logp, candidates, weights)
            return policy.self_critical_advantage(reward, greedy)
        return policy.group_advantage(reward) if rules.algorithm == "grpo" else policy.leave_one_out_advantage(reward)

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, Any]:
        """Greedy captions on validation pools: each listener's accuracy, and the gap.

        Besides, how near the speaker is to saying one thing of every image, and what gap that would make; how far its
        prefixes have left the geometry they began with, and how many dimensions they fill; and some captions.
        """
        count = min(256, len(self.held))
        index = np.arange(count)
        pools = game.draw_candidates(index, np.arange(len(self.held)), self.config.game.candidates, "observe")
        patches = patch_batch(self.validation_store, index, self.speaker.device)
        weights, context = self.weights[:, None].expand(-1, count), None
        if self.pairs:
            mine = index % len(self.pairs)
            pairs = [self.pairs[i] for i in mine]
            if self.units:
                context = continual.audience_codes(mine, len(self.pairs), self.config.continual.centred).to(patches.device)
            weights = audiences.round_weights(pairs, len(self.listeners)).to(self.weights.device)
            if self.validation_named is not None:
                profile = audiences.profiles(self.validation_named, count, [max(self.config.picks)] * count, "observe")
                context = audiences.audience_vectors(profile, pairs).to(patches.device)
        texts, states = [], []
        for rows in torch.arange(count).split(64):
            told = None if context is None else context[rows]
            prefix = self.speaker.trained(patches[rows], told)
            texts += self.speaker.decode(*self.speaker.sample(prefix)[:2])
            states.append(torch.stack([self.base(patches[rows], told), prefix]).flatten(2).cpu().double())
        hits = game.hits(score_all(self.validation_listeners, texts, pools))
        heard = (hits * (weights != 0)).sum(1) / (weights != 0).sum(1).clamp(min=1)
        figures = {f"accuracy/{c.name}": float(h) for c, h in zip(self.config.listeners, heard, strict=True)}
        gaps = game.gap(hits, weights)
        figures["gap"] = float(gaps.mean())
        for i, pair in enumerate(self.config.audiences):
            figures["gap/" + "-".join(pair)] = float(gaps[i::len(self.pairs)].mean())
        constant, share = game.most_common_caption(texts)
        same = game.hits(score_all(self.validation_listeners, [constant] * count, pools))
        first, now = map(game.centred_kernel, torch.cat(states, 1))
        return figures | {"gap_constant": float(game.gap(same, weights).mean()), "commonest_caption": share,
                          "kernel_distance": game.kernel_distance(first, now),
                          "prefix_dimensions": game.participation_ratio(now), "captions": texts[:4]}

    def state(self) -> dict[str, Any]:
        text_maps = [getattr(listener, "text_map", None) for listener in self.listeners]
        return {"baseline": self.baseline, "text_maps": [None if ear is None else ear.tolist() for ear in text_maps]}

    def restore(self, state: dict[str, Any]) -> None:
        self.baseline = state["baseline"]
        for listener, ear in zip(self.listeners, state["text_maps"], strict=True):
            if isinstance(listener, ClipListener) and listener.text_map is not None:
                listener.text_map.copy_(torch.tensor(ear))


TASKS: dict[str, Callable[[Config, Accelerator], Task]] = {
    "clip": ClipTask, "words": WordTask, "caption": CaptionTask, "game": GameTask}
