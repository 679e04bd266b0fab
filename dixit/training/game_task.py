"""Train the speaker in the game: sample captions, let the listeners choose, update by their rewards.

`TASKS` names every training of the project. Leaves out the loop (loop.py), the warm starts before the game
(warm_start.py), the listeners of each round (audiences.py), remedies for forgetting (continual.py), and the evaluation
on the test split (eval/).

Shapes: B images, N captions per image, S = B*N, M pools of C candidates, L listeners, R rounds of the global batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor, nn

from dixit.common import DixitError, rng
from dixit.config import Config
from dixit.models.clip import Clip, digest
from dixit.models.features import prefetch
from dixit.models.listeners import ClipListener, Listener, score_all
from dixit.models.speaker import Prefilled
from dixit.models.vlm import Vlm
from dixit.training import game, policy, said
from dixit.training.audiences import Audience
from dixit.training.baselines import EVERYONE, Baselines
from dixit.training.candidates import CandidateSampler, draw_candidates
from dixit.training.continual import Remedy
from dixit.training.loop import local_slice, local_weight
from dixit.training.runs import LoadedRun, make_listeners, open_models, patch_batch, speaker_and_images
from dixit.training.task import Task
from dixit.training.validation import game_figures
from dixit.training.warm_start import CaptionTask, ClipTask, WordTask

VALIDATION_ROUNDS = 256  # at most
NO_SPREAD = 1e-6  # rewards of an image's captions whose standard deviation is below this are equal


class GameTask(Task):
    """Listener subtraction: the speaker is rewarded when some listeners find the target and others do not."""

    def __init__(self, config: Config, accelerator: Accelerator):
        self.config, self.accelerator = config, accelerator
        device = accelerator.device
        # held-out ones too: a missing one must not be told after the training
        models, heldout = (open_models(group, device) for group in (config.listeners, config.heldout))
        start = speaker_and_images(config, device)
        self.speaker, self.data, self.validation = start.speaker, start.data, start.validation
        self.store, self.validation_store = start.store, start.validation_store
        for split, images in (("training", self.data), ("validation", self.validation)):
            if len(images) < config.game.candidates:
                raise DixitError(f"game.candidates {config.game.candidates} is more than the {len(images)} images "
                                 f"of the {split} split")
        self.listeners = make_listeners(config.listeners, self.data, device, models)
        self.validation_listeners = make_listeners(config.listeners, self.validation, device, models)
        named = {f"{c.model or c.clip} {c.pretrained}".strip(): model
                 for c, model in zip(config.listeners, models, strict=True) if model is not None}
        self.models = {name: digest(_module(model)) for name, model in named.items()}  # each once
        del heldout
        for listener, other in zip(self.listeners, self.validation_listeners, strict=True):
            if isinstance(listener, ClipListener) and isinstance(other, ClipListener):
                other.text_map = listener.text_map  # shared: the validation listener learns too
        self.sampler = CandidateSampler(config, self.data, self.listeners)
        self.audience = Audience(config, start.eyes, self.listeners, self.data, self.validation_listeners,
                                 self.validation, device)
        self.trained = self.speaker.trained
        self.remedy = Remedy(config, self.speaker)
        self.base = copy.deepcopy(self.trained).requires_grad_(False)
        self.baselines = Baselines(config, accelerator)  # reinforce
        self.rollouts: dict[int, tuple] = {}  # ppo: the captions that further epochs are trained on

    def loss(self, step: int, micro_batch: int) -> tuple[Tensor, dict[str, float]]:
        """Draw images and candidates, sample captions, score them, and return the loss."""
        config, settings, rules, speaker = self.config, self.config.train, self.config.policy, self.speaker
        seed, n = config.seed, rules.samples
        rollout = step - step % rules.epochs if rules.algorithm == "ppo" else step
        if micro_batch == 0:
            self.remedy.before_step(step, self.store, self.audience_inputs)
            prefetch(self.store, game.batch_indices(seed, step + 1, settings.batch, len(self.data)))

        # Draw: everything of the global batch, then this process's share.
        mine = local_slice(settings.batch, settings.accumulate, micro_batch, self.accelerator)
        index = game.batch_indices(seed, rollout, settings.batch, len(self.data))
        candidates = self.candidates(rollout, index)[mine].repeat_interleave(n, 0)  # (S, M, C)
        draws = rng("sample", seed, rollout).random((settings.batch, n, config.speaker.max_tokens), dtype=np.float32)
        uniforms = torch.from_numpy(draws[mine]).flatten(0, 1).to(speaker.device)
        weights, audience = self.audience.weights(rollout), self.audience_inputs(rollout)
        patches = patch_batch(self.store, index[mine], speaker.device)

        # Speak: captions by sampling, and their log-probabilities with gradients.
        prefix = self.trained(patches) if audience is None else self.trained(patches, audience[mine])
        if rules.algorithm == "ppo" and step % rules.epochs:
            tokens, mask, old, advantage, figures = self.rollouts[micro_batch]
            logp = speaker.logprobs(prefix, tokens, mask, rules.temperature)
            return policy.clipped_loss(logp, old, mask, advantage, rules.clip_ratio), figures
        run = speaker.prefill(prefix)  # once, for both
        tokens, mask, _ = speaker.sample(prefix.detach(), uniforms, rules.temperature, run)
        texts = speaker.decode(tokens, mask)
        logp = speaker.logprobs(prefix, tokens, mask, rules.temperature, run)

        # Score: the listeners choose, and listeners that learn take a step.
        base = self.base_logprobs(patches, tokens, mask)
        with torch.no_grad():
            reward, figures, logits = self.reward(self.listeners, texts, mask, logp.detach(), base, candidates,
                                                  weights[:, mine].repeat_interleave(n, 1))
        self.update_listeners(texts, candidates)

        # Update: by advantages, or by the best and the worst caption of each image.
        grouped = reward.unflatten(0, (-1, n))
        figures |= self.figures(grouped, logp.detach(), mask, logits, weights, mine)
        if rules.algorithm == "dpo":
            assert base is not None
            said, reference = ((x * mask).sum(1).unflatten(0, (-1, n)) for x in (logp, base))
            loss = policy.dpo_loss(said, reference, grouped, rules.beta)
        else:
            baseline = self.baselines.advance(grouped, weights, mine) if rules.algorithm == "reinforce" else None
            advantage = self.advantage(self.listeners, grouped, baseline, prefix.detach(), run, patches,
                                       candidates[::n], weights[:, mine]).flatten()
            if rules.algorithm == "ppo":
                loss = policy.clipped_loss(logp, logp.detach(), mask, advantage, rules.clip_ratio)
                self.rollouts[micro_batch] = (tokens, mask, logp.detach(), advantage, figures)
            else:
                loss = policy.policy_loss(logp, mask, advantage)
        for penalty in self.remedy.penalties():
            loss = loss + penalty
        return loss, figures

    def candidates(self, step: int, index: Int[np.ndarray, "B"]) -> Int[Tensor, "B M C"]:
        """M pools of candidates for each image of a global batch, a pure function of (seed, step)."""
        return self.sampler.draw(step, index)

    def audience_inputs(self, step: int) -> Float[Tensor, "B c"] | None:
        """The adapter's audience input of each round of a global batch; None if it has none."""
        return self.audience.inputs(step)

    def reward(self, listeners: list[Listener], texts: list[str], mask: Tensor, logp: Float[Tensor, "S T"],
               base: Float[Tensor, "S T"] | None, candidates: Int[Tensor, "S M C"],
               weights: Float[Tensor, "L S"]) -> tuple[Float[Tensor, "S"], dict[str, float], Float[Tensor, "L SM C"]]:
        """The total reward, the mean of each of its terms, and the listeners' logits. `base`: see base_logprobs."""
        config = self.config.game
        repeated = [text for text in texts for _ in range(config.pools)]
        with self.full_precision():
            logits = score_all(listeners, repeated, candidates.flatten(0, 1), allow_nan=self.allows_nan)
        if config.normalise == "listener":
            each = game.normalised_terms(self.listener_terms(logits, weights)).flatten(1)  # (L, S)
            terms = {"listeners": (weights * each).sum(0)}
        else:
            paid = game.listener_reward(config.reward, logits, weights.repeat_interleave(config.pools, 1))  # (S*M,)
            terms = {"listeners": paid.unflatten(0, (-1, config.pools)).mean(1)}
        costs = {}
        if config.length_cost:
            terms["length"], costs["length"] = game.caption_lengths(mask), config.length_cost
        if config.repetition_cost:
            terms["repetition"] = game.repetition(texts).to(mask.device)
            costs["repetition"] = config.repetition_cost
        if config.kl_cost:
            assert base is not None
            terms["kl"], costs["kl"] = ((logp - base) * mask).sum(1), config.kl_cost
        total = game.total_reward(terms, costs)
        return total, {f"term/{k}": float(v.mean()) for k, v in terms.items()}, logits

    def full_precision(self) -> torch.autocast:
        """Within it listeners compute as in validation, whatever train.mixed_precision is."""
        return torch.autocast(self.accelerator.device.type, enabled=False)

    @property
    def allows_nan(self) -> bool:
        """Whether a listener may return NaN: where each is normalised by itself, the others' rewards still count."""
        return self.config.game.normalise == "listener"

    @torch.no_grad()
    def base_logprobs(self, patches: Float[Tensor, "B P Dv"], tokens: Int[Tensor, "S T"],
                      mask: Tensor) -> Float[Tensor, "S T"] | None:
        """The log-probability of each token under the base speaker, which knows of no audience; None if neither a KL
        cost nor DPO asks for it."""
        if not self.config.game.kl_cost and self.config.policy.algorithm != "dpo":
            return None
        return self.speaker.logprobs(self.base(patches), tokens, mask, self.config.policy.temperature)

    def listener_terms(self, logits: Float[Tensor, "L SM C"], weights: Float[Tensor, "L S"]) -> Float[Tensor, "L B N"]:
        """Each listener's own reward of each caption, the mean over pools."""
        pools = self.config.game.pools
        each = game.listener_terms(self.config.game.reward, logits, weights.repeat_interleave(pools, 1))
        return each.unflatten(1, (-1, self.config.policy.samples, pools)).mean(3)

    def advantage(self, listeners: list[Listener], reward: Float[Tensor, "B N"], baseline: Float[Tensor, "B"] | None,
                  prefix: Tensor, run: Prefilled, patches: Tensor, candidates: Int[Tensor, "B M C"],
                  weights: Float[Tensor, "L B"]) -> Float[Tensor, "B N"]:
        """The advantage of `policy.algorithm` (ppo and dpo: leave-one-out). `baseline`: of reinforce; `run`: what
        prefill gave for the prefix."""
        rules = self.config.policy
        if baseline is not None:
            return policy.running_mean_advantage(reward, baseline)
        if rules.algorithm == "self_critical":
            tokens, mask, logp = self.speaker.sample(prefix, run=run)
            texts = self.speaker.decode(tokens, mask)
            base = self.base_logprobs(patches, tokens, mask)
            greedy, _, _ = self.reward(listeners, texts, mask, logp, base, candidates, weights)
            return policy.self_critical_advantage(reward, greedy)
        return policy.group_advantage(reward) if rules.algorithm == "grpo" else policy.leave_one_out_advantage(reward)

    def figures(self, reward: Float[Tensor, "B N"], logp: Float[Tensor, "S T"], mask: Tensor,
                logits: Float[Tensor, "L SM C"], weights: Float[Tensor, "L R"], mine: slice) -> dict[str, float]:
        """What is logged of a batch: each listener's accuracy and reward in its own rounds, reward, length, entropy."""
        samples, pools = self.config.policy.samples, self.config.game.pools
        listening = weights[:, mine].repeat_interleave(samples * pools, 1) != 0  # (L, S*M)
        accuracy = (game.hits(logits) * listening).sum(1) / listening.sum(1).clamp(min=1)
        figures = {f"accuracy/{c.name}": a for c, a in zip(self.config.listeners, accuracy.tolist(), strict=True)}
        terms = self.listener_terms(logits, weights[:, mine].repeat_interleave(samples, 1))
        figures |= self.listener_figures(terms, weights, mine)
        spread = reward.std(1)
        return figures | {"reward": float(reward.mean()), "reward_std": float(spread.mean()),
                          "length": float(game.caption_lengths(mask).mean()),
                          "entropy": float(-(logp * mask).sum() / mask.sum()),
                          "frac_reward_zero_std": float((spread < NO_SPREAD).float().mean())}

    def listener_figures(self, terms: Float[Tensor, "L B N"], weights: Float[Tensor, "L R"],
                         mine: slice) -> dict[str, float]:
        """The reward of each listener that takes part in the global batch, over its rounds: mean, spread within an
        image's captions, share of images without spread; and how many captions got NaN, where that is allowed."""
        listening = (weights != 0).to(terms)
        mean, std = game.group_statistics(terms)
        found = {"reward": mean, "reward_std": std, "frac_reward_zero_std": (std < NO_SPREAD).to(terms)}
        if self.allows_nan:
            found["reward_nan"] = (~terms.isfinite()).sum(2) * listening.sum(1, keepdim=True)  # a sum, not a mean
        # The loop averages over all images; a listener that takes part in few of them has its mean over those.
        own = {name: ((values * listening[:, mine]).mean(1) / listening.mean(1)).tolist()
               for name, values in found.items()}
        present = [i for i, some in enumerate(listening.any(1).tolist()) if some]
        return {f"{name}/{self.config.listeners[i].name}": values[i] for name, values in own.items() for i in present}

    def update_listeners(self, texts: list[str], candidates: Int[Tensor, "S M C"]) -> None:
        """A step of gradient descent for listeners that learn, after they have scored the captions."""
        repeated = [text for text in texts for _ in range(candidates.shape[1])]
        for listener in self.listeners:
            if isinstance(listener, ClipListener) and listener.text_map is not None:
                with self.full_precision():
                    gradient = listener.text_map_gradient(repeated, candidates.flatten(0, 1))
                gradient = gradient * self.weight_of(len(texts))
                gradient = self.accelerator.reduce(gradient, reduction="mean")
                if gradient.isfinite().all():
                    listener.text_map -= listener.learning_rate * gradient

    def weight_of(self, captions: int) -> float:
        """The weight of a mean over this process's captions of a micro-batch in the mean over all processes."""
        all_captions = self.config.train.batch // self.config.train.accumulate * self.config.policy.samples
        return local_weight(all_captions, captions, self.accelerator.num_processes)

    def after_step(self, step: int) -> None:
        self.remedy.after_step(step, self.audience_inputs)

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, Any]:
        """Figures of greedy captions on validation pools (validation.py), per listener and per named audience."""
        count = min(VALIDATION_ROUNDS, len(self.validation))
        index = np.arange(count)
        pools = draw_candidates(index, np.arange(len(self.validation)), self.config.game.candidates, "observe")
        patches = patch_batch(self.validation_store, index, self.speaker.device)
        weights, audience = self.audience.on_validation(count)
        figures, hits, gaps = game_figures(self.speaker, self.base, patches, audience, self.validation_listeners,
                                           pools, weights, self.allows_nan)
        accuracy = (hits * (weights != 0)).sum(1) / (weights != 0).sum(1).clamp(min=1)
        named = {f"accuracy/{c.name}": float(a) for c, a in zip(self.config.listeners, accuracy, strict=True)}
        for i, pair in enumerate(self.config.audiences):
            named["gap/" + "-".join(pair)] = float(gaps[i::len(self.config.audiences)].mean())
        return named | figures

    @torch.no_grad()
    def said(self, step: int) -> list[dict[str, Any]]:
        """What is said of a few validation images, scored as an update would (see said.py)."""
        config, speaker, n = self.config, self.speaker, self.config.policy.samples
        count = min(VALIDATION_ROUNDS, len(self.validation))
        index = np.sort(rng("said", config.seed).choice(count, min(said.IMAGES, count), replace=False))
        pools = draw_candidates(np.repeat(index, config.game.pools), np.arange(len(self.validation)),
                                config.game.candidates, "said", config.seed)
        pools = pools.unflatten(0, (len(index), -1))  # (B, M, C)
        draws = rng("said captions", config.seed).random((len(index) * n, config.speaker.max_tokens), dtype=np.float32)
        weights, audience = self.audience.on_validation(count)
        patches = patch_batch(self.validation_store, index, speaker.device)
        prefix = speaker.trained(patches, None if audience is None else audience[index])
        run = speaker.prefill(prefix)
        tokens, mask, logp = speaker.sample(prefix, torch.from_numpy(draws).to(speaker.device),
                                            config.policy.temperature, run)
        texts, base = speaker.decode(tokens, mask), self.base_logprobs(patches, tokens, mask)
        repeated, weights = pools.repeat_interleave(n, 0), weights[:, index]
        reward, _, logits = self.reward(self.validation_listeners, texts, mask, logp, base, repeated,
                                        weights.repeat_interleave(n, 1))
        reward = reward.unflatten(0, (-1, n))
        baseline = self.baselines.so_far(weights).to(reward) if config.policy.algorithm == "reinforce" else None
        advantage = self.advantage(self.validation_listeners, reward, baseline, prefix, run, patches, pools, weights)
        return said.rows(step, self.validation, index, texts, [c.name for c in config.listeners], logits, pools,
                         weights, reward, advantage)

    def state_dict(self) -> dict[str, Any]:
        maps = [getattr(listener, "text_map", None) for listener in self.listeners]
        means = self.baselines.means
        return {"baseline": means.get(EVERYONE),
                "audience_baselines": {audience: mean for audience, mean in means.items() if audience != EVERYONE},
                "text_maps": [None if m is None else m.tolist() for m in maps], "models": self.models}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for model, weights in state.get("models", {}).items():  # earlier versions wrote none
            if self.models.get(model) != weights:
                raise DixitError(f"the listeners' model {model} has other weights than this game has been trained "
                                 "with; put them back, or start again with out= of another folder")
        self.baselines.means = dict(state.get("audience_baselines", {}))  # earlier versions wrote none
        if state["baseline"] is not None:
            self.baselines.means[EVERYONE] = state["baseline"]
        for listener, saved in zip(self.listeners, state["text_maps"], strict=True):
            if isinstance(listener, ClipListener) and listener.text_map is not None:
                listener.text_map.copy_(torch.tensor(saved))


def _module(model: Clip | LoadedRun | Vlm) -> nn.Module:
    """The part of a listener's model that differs from those of its name: of a captioner what was trained."""
    return model.speaker.trained if isinstance(model, LoadedRun) else model.model


TASKS: dict[str, Callable[[Config, Accelerator], Task]] = {
    "clip": ClipTask, "words": WordTask, "caption": CaptionTask, "game": GameTask}
