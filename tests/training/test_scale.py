"""The same training on 1, 2 and 4 processes, with uneven shares, over resumptions on other numbers of processes."""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from processes import together
from safetensors.torch import load_file

from dixit.common import DixitError
from dixit.training.checkpoints import FILES, checkpoints, trained_weights
from dixit.training.loop import local_weight, share_bounds

# Plain SGD: AdamW makes full steps even of gradients that are 0 but for rounding (the bias of an attention's keys).
STEPS = ["train.steps=3", "train.lr=0.1", "train.log_every=1", "train.optimizer=sgd"]
ADAMW = ["train.lr=1e-3", "train.optimizer=adamw"]
ROUNDING = 2e-5  # of losses, rewards and weights: batches of other sizes are rounded otherwise, in float32


def close_run(one: Path, other: Path, weights: float = ROUNDING) -> None:
    """The same training up to rounding: every figure of every step, and every weight."""
    first, second = ([json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
                     for run in (one, other))
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert a["step"] == b["step"]
        for key in ("loss", "reward", "grad_norm", "accuracy/colour", "accuracy/grey", "reward/grey", "reward_std/grey",
                    "frac_reward_zero_std/grey"):
            if key in a:
                assert a[key] == pytest.approx(b[key], abs=ROUNDING, rel=ROUNDING), (a["step"], key)
    old, new = load_file(trained_weights(one)), load_file(trained_weights(other))
    for key in old:
        torch.testing.assert_close(old[key], new[key], atol=weights, rtol=1e-4)


def test_shares_cover_a_batch_whatever_the_processes():
    for batch, parts, world in ((7, 1, 2), (16, 2, 3), (5, 1, 4), (12, 3, 4)):
        rows = []
        for part in range(parts):
            places = share_bounds(batch, parts, part, world)
            sizes = [stop - start for start, stop in zip(places, places[1:], strict=False)]
            assert min(sizes) > 0 and max(sizes) - min(sizes) <= 1
            assert (places[0], places[-1]) == (part * batch // parts, (part + 1) * batch // parts)
            rows += [(n, local_weight(batch, n, world)) for n in sizes]
        assert sum(n for n, _ in rows) == batch
        assert sum(weight for _, weight in rows) / world == pytest.approx(1)
    with pytest.raises(DixitError, match="train.batch 3 must be at least train.accumulate x processes"):
        share_bounds(3, 2, 0, 2)


@pytest.fixture(scope="module")
def alone(tiny, train, tmp_path_factory):
    """Runs on one process, made once for all comparisons: by overrides."""
    made: dict[tuple, Path] = {}

    def run(config: Path, *overrides: str) -> Path:
        key = (config, *overrides)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("alone") / "run"
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("DIXIT_CACHE", str(tiny.cache))
                patch.setenv("ACCELERATE_USE_CPU", "true")
                train(config, made[key], *STEPS, *overrides)
        return made[key]
    return run


GAME = ["train.batch=8"]
UNEVEN = ["train.batch=6", "train.accumulate=1"]


@pytest.mark.parametrize(("world", "overrides"), [
    (2, GAME), (4, GAME), (2, [*GAME, "train.accumulate=2"]), (4, UNEVEN),
    (2, ["train.batch=5", "policy.algorithm=reinforce"]),
    (2, ["train.batch=5", "policy.algorithm=reinforce", "policy.baseline=audience", "game.audience=shuffled"]),
    (2, ["train.batch=5", "policy.algorithm=dpo", "policy.samples=3", "game.normalise=listener"]),
    (2, ["train.batch=5", "listeners.1.learning_rate=0.1", "game.distractors=in_batch"]),
], ids=lambda value: " ".join(value) if isinstance(value, list) else str(value))
def test_the_game_is_the_same_on_any_number_of_processes(home, train, alone, tmp_path, world, overrides):
    one = alone(home.game_config, *[o for o in overrides if "accumulate" not in o])
    codes = together(world, lambda: train(home.game_config, tmp_path / "run", *STEPS, *overrides), tmp_path / "said")
    assert codes == [0] * world, (tmp_path / "said" / "0").read_text()
    close_run(one, tmp_path / "run")


def test_captions_with_uneven_shares_and_micro_batches(home, train, alone, tmp_path):
    overrides = ["train.batch=10"]
    split = [*overrides, "train.accumulate=2"]  # 5 rows for 2 processes, twice
    codes = together(2, lambda: train(home.caption_config, tmp_path / "run", *STEPS, *split), tmp_path / "said")
    assert codes == [0, 0]
    close_run(alone(home.caption_config, *overrides), tmp_path / "run")


@pytest.fixture
def contrast(home):
    """Train heads of a CLIP as ClipTask does, on patches and texts that are random numbers."""
    from accelerate.state import AcceleratorState

    from dixit.config import load_config
    from dixit.models.features import to_feature_maps
    from dixit.training.loop import make_accelerator
    from dixit.training.loop import train as loop
    from dixit.training.made_captions import WrittenCaptions
    from dixit.training.warm_start import ClipTask

    class Heads(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image, self.text = torch.nn.Linear(16, 8), torch.nn.Linear(6, 8)
            self.scale = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, maps: torch.Tensor, texts: torch.Tensor) -> tuple[torch.Tensor, ...]:
            unit = torch.nn.functional.normalize
            return unit(self.image(maps.flatten(1))), unit(self.text(texts)), self.scale.exp()

    class Pairs(ClipTask):
        def __init__(self, config: object, accelerator: object) -> None:
            self.config, self.accelerator = config, accelerator
            draw = torch.Generator().manual_seed(0)
            patches = torch.randn(40, 4, 4, generator=draw).numpy()
            self.sets = [(lambda rows: to_feature_maps(patches[rows]), WrittenCaptions([[str(i)] for i in range(40)]))]
            self.texts = {str(i): row for i, row in enumerate(torch.randn(40, 6, generator=draw))}
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self.trained = Heads()

        def validate(self, step: int) -> dict[str, float]:
            return {}

    def run(folder: Path) -> None:
        config = load_config(home.caption_config, [f"out={folder}", *STEPS, "train.batch=10", "train.clip_norm=0"])
        AcceleratorState._reset_state()
        accelerator = make_accelerator(config)
        loop(config, Pairs(config, accelerator), accelerator)
    return run


@pytest.mark.parametrize("world", [2, 4])
def test_the_contrastive_loss_sees_the_candidates_of_all_processes(home, contrast, tmp_path, world):
    """Ten images and captions, each a candidate for all others, on 2 and 4 processes (uneven shares) as on one."""
    assert together(world, lambda: contrast(tmp_path / "run"), tmp_path / "said") == [0] * world
    contrast(tmp_path / "alone")
    close_run(tmp_path / "alone", tmp_path / "run")


def test_a_batch_with_fewer_rows_than_processes_is_refused(home, train, tmp_path):
    def work() -> None:
        train(home.game_config, tmp_path / "run", "train.batch=1")

    assert 2 in together(2, work, tmp_path / "said")
    assert "error: train.batch 1 must be at least" in "".join(p.read_text() for p in (tmp_path / "said").iterdir())


def test_a_run_goes_on_with_other_processes(home, train, alone, tmp_path):
    """2 processes, then 1, then 3 (uneven shares), then 2 again: as if it had never stopped."""
    settings = [*ADAMW, "train.batch=8", "train.save_every=1", "train.keep_last=9", "train.schedule=constant"]
    run = tmp_path / "run"
    for steps, world in enumerate((2, 1, 3, 2), start=1):
        def work(steps: int = steps) -> None:
            train(home.game_config, run, *STEPS, *settings, f"train.steps={steps}")

        codes = together(world, work, tmp_path / f"said_{steps}")
        assert codes == [0] * world, (tmp_path / f"said_{steps}" / "0").read_text()
        assert checkpoints(run)[-1].name == f"step_{steps:06d}"
    close_run(alone(home.game_config, *settings, "train.steps=4"), run, weights=2e-4)  # for AdamW, see above


def sharded(train, *given: object) -> None:
    """Train with accelerate's FSDP2, which it offers on GPUs only, made to run on CPUs."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    from dixit.training import loop

    def made(config: object, real=loop.make_accelerator) -> object:
        accelerator = real(config)
        PartialState._shared_state["distributed_type"] = accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="no_wrap", reshard_after_forward=False)
        return accelerator

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_accelerator", made)
        train(*given)


def test_a_sharded_adapter_trains_as_a_whole_one_and_goes_on_exactly(home, train, alone, tmp_path):
    """FSDP2 on two processes against one process; then killed, resumed sharded, and resumed whole."""
    from torch.distributed.tensor import DTensor

    settings = [*ADAMW, "train.batch=8", "train.save_every=1", "train.keep_last=9", "train.schedule=constant",
                "train.best=gap", "train.eval_every=2", "train.clip_norm=0.05"]
    run, again = tmp_path / "run", tmp_path / "again"

    def work(place: Path, steps: int) -> None:
        from dixit.training.game_task import GameTask

        loss = GameTask.loss

        def watched(self: GameTask, *given: int) -> object:
            assert all(isinstance(p, DTensor) for p in self.trained.parameters())
            return loss(self, *given)

        GameTask.loss = watched
        sharded(train, home.game_config, place, *STEPS, *settings, f"train.steps={steps}")

    assert together(2, lambda: work(run, 4), tmp_path / "said") == [0, 0], (tmp_path / "said" / "0").read_text()
    close_run(alone(home.game_config, *settings, "train.steps=4"), run, weights=2e-4)  # for AdamW, see above
    shutil.copytree(run, again)
    for step in (3, 4):
        shutil.rmtree(again / "checkpoints" / f"step_{step:06d}")
    assert together(2, lambda: work(again, 4), tmp_path / "said") == [0, 0], (tmp_path / "said" / "0").read_text()
    for name in FILES:
        first, second = (load_file(trained_weights(r).with_name(name)) for r in (run, again))
        assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    for step in (3, 4):
        shutil.rmtree(again / "checkpoints" / f"step_{step:06d}")
    train(home.game_config, again, *STEPS, *settings, "train.steps=4")
    close_run(run, again, weights=2e-4)


def zero(train, stage: int, *given: object) -> None:
    """Train under DeepSpeed, which accelerate offers on GPUs only, made to run on CPUs."""
    import deepspeed.ops
    from accelerate.state import PartialState
    from accelerate.utils import DeepSpeedPlugin, DistributedType

    from dixit.training import loop, sharding

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled first, for minutes

    def made(config: object, real=loop.make_accelerator) -> object:
        accelerator, plugin = real(config), DeepSpeedPlugin(zero_stage=stage)
        plugin.select(_from_accelerator_state=True)
        PartialState._shared_state["distributed_type"] = accelerator.state.distributed_type = DistributedType.DEEPSPEED
        accelerator.state.deepspeed_plugins, accelerator.deepspeed_engine_wrapped = plugin, None
        sharding.configure_deepspeed(config.train, accelerator)
        return accelerator

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_accelerator", made)
        train(*given)


@pytest.mark.parametrize("stage", [1, 2])
def test_deepspeed_trains_as_one_process_and_goes_on_exactly(home, train, alone, tmp_path, stage):
    """ZeRO on two processes with uneven micro-batches; then resumed under it, and on one process without it."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    settings = [*ADAMW, "train.batch=10", "train.save_every=1", "train.keep_last=9", "train.schedule=constant",
                "train.best=gap", "train.eval_every=2", "train.clip_norm=0.05", "train.steps=4"]
    run, again = tmp_path / "run", tmp_path / "again"

    def work(place: Path) -> None:
        zero(train, stage, home.game_config, place, *STEPS, *settings, "train.accumulate=2")

    assert together(2, lambda: work(run), tmp_path / "said") == [0, 0], (tmp_path / "said" / "0").read_text()
    close_run(alone(home.game_config, *settings), run, weights=2e-4)  # for AdamW, see above
    shutil.copytree(run, again)
    for step in (3, 4):
        shutil.rmtree(again / "checkpoints" / f"step_{step:06d}")
    assert together(2, lambda: work(again), tmp_path / "said") == [0, 0], (tmp_path / "said" / "0").read_text()
    for name in FILES:
        first, second = (load_file(trained_weights(r).with_name(name)) for r in (run, again))
        assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    for step in (3, 4):
        shutil.rmtree(again / "checkpoints" / f"step_{step:06d}")
    train(home.game_config, again, *STEPS, *settings)
    close_run(run, again, weights=2e-4)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_deepspeed_makes_no_step_of_a_loss_that_is_not_finite(home, train, tmp_path, value):
    """Of one process alone, and though its gradient is finite."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")

    def work() -> None:
        from dixit.training.game_task import GameTask

        def broken(self: GameTask, step: int, part: int, real=GameTask.loss) -> tuple:
            loss, figures = real(self, step, part)
            return loss + (float(value) if (step, os.environ["RANK"]) == (1, "1") else 0.0), figures

        GameTask.loss = broken
        zero(train, 2, home.game_config, tmp_path / "run", *STEPS, *ADAMW, "train.save_every=1", "train.keep_last=9")

    assert together(2, work, tmp_path / "said") == [0, 0], (tmp_path / "said" / "0").read_text()
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row.get("skipped") for row in rows] == [None, 1.0, None]
    one, two, three = (load_file(place / FILES[0]) for place in checkpoints(tmp_path / "run"))
    assert all(torch.equal(one[k], two[k]) for k in one) and any(not torch.equal(two[k], three[k]) for k in two)


@pytest.mark.parametrize(("stage", "words"), [(3, []), (2, ["train.mixed_precision=bf16"])])
def test_what_deepspeed_must_not_do_is_refused(home, train, tmp_path, stage, words):
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    work = lambda: zero(train, stage, home.game_config, tmp_path / "run", *words)  # noqa: E731
    assert together(2, work, tmp_path / "said") == [2, 2]
    assert "error: under DeepSpeed training needs zero_stage 1 or 2" in (tmp_path / "said" / "0").read_text()


def test_a_launcher_that_asks_for_what_is_not_installed_is_one_line(home, train, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    if find_spec("deepspeed") is None:
        with pytest.raises(DixitError, match="^cannot train as the launcher's config says: .*DeepSpeed"):
            train(home.game_config, tmp_path / "run")
    monkeypatch.setenv("ACCELERATE_USE_MEGATRON_LM", "true")
    with pytest.raises(DixitError, match="does not run under Megatron-LM"):
        train(home.game_config, tmp_path / "run")


def test_a_sharded_llm_speaks_as_a_whole_one(home, train, alone, tmp_path):
    """Its layers on two processes, whose captions differ in number and length; then resumed with the LLM whole."""
    settings = ["train.batch=5", "policy.samples=3", "game.kl_cost=0.1", "train.save_every=1", "train.eval_every=2",
                "train.schedule=constant", "train.keep_last=9"]

    def work() -> None:
        from torch.distributed.tensor import DTensor

        from dixit.models import speaker

        speaker.MICRO_BATCH = 2  # as if there were many captions
        task = train(home.game_config, tmp_path / "run", *STEPS, *settings, "speaker.shard=true")
        layers = [p for name, p in task.speaker.llm.named_parameters() if ".layers." in name]
        assert all(isinstance(p, DTensor) for p in layers) and not task.speaker.llm.lm_head.weight.requires_grad
        assert sum(p.to_local().numel() for p in layers) == sum(p.numel() for p in layers) / 2

    assert together(2, work, tmp_path / "said") == [0, 0], (tmp_path / "said" / "0").read_text()
    close_run(alone(home.game_config, *settings), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_000003")
    train(home.game_config, tmp_path / "run", *STEPS, *settings, "speaker.shard=true")  # one process holds it whole
    close_run(alone(home.game_config, *settings), tmp_path / "run")


def test_frozen_models_are_held_once_and_only_the_adapter_is_wrapped(home, train, tmp_path):
    """In each of two processes: what DDP was given, how many LLMs and CLIPs there are, and what travelled."""
    def work() -> None:
        import torch.distributed as dist
        from torch.nn.parallel import DistributedDataParallel

        from dixit.models.clip import Clip, _opened

        _opened.clear()  # what other tests of this process hold does not count
        before = gc.get_objects()
        known = {id(o) for o in before}
        wrapped, travelled = [], Counter()
        start, reduce = DistributedDataParallel.__init__, dist.all_reduce

        def watched_start(self: object, module: torch.nn.Module, *given: object, **more: object) -> None:
            wrapped.append(module)
            start(self, module, *given, **more)

        def watched_reduce(tensor: torch.Tensor, *given: object, **more: object) -> object:
            travelled["all_reduce"] += tensor.numel()
            return reduce(tensor, *given, **more)

        DistributedDataParallel.__init__, dist.all_reduce = watched_start, watched_reduce
        for name in ("broadcast", "broadcast_object_list", "all_gather_object", "scatter"):
            def refuse(*_: object, name: str = name, **__: object) -> None:
                raise AssertionError(f"{name} was called")
            setattr(dist, name, refuse)
        task = train(home.game_config, tmp_path / "run", "train.steps=2", f"heldout.0.clip={home.clip}",
                     f"listeners.1.clip={home.other_clip}")
        gc.collect()
        held = [o for o in gc.get_objects() if id(o) not in known]
        adapter = {id(p) for p in task.trained.parameters()}
        report = {"wrapped": [{id(p) for p in m.parameters()} == adapter for m in wrapped],
                  "llms": sum(type(o).__name__ == "LlamaForCausalLM" for o in held),
                  "clips": len({o.key for o in held if isinstance(o, Clip)}),
                  "clip objects": sum(isinstance(o, Clip) for o in held), "figures": travelled["all_reduce"],
                  "frozen": not any(p.requires_grad for p in task.speaker.llm.parameters())}
        (tmp_path / f"report_{os.environ['RANK']}.json").write_text(json.dumps(report))

    assert together(2, work, tmp_path / "said") == [0, 0], (tmp_path / "said" / "0").read_text()
    for rank in (0, 1):
        report = json.loads((tmp_path / f"report_{rank}.json").read_text())
        assert report["wrapped"] == [True] and report["llms"] == 1 and report["frozen"]
        assert report["clips"] == report["clip objects"] == 2  # though speaker, listeners and both splits ask for them
        assert report["figures"] < 200  # besides the adapter's gradients only figures of the log are averaged


def test_hosts_that_see_other_checkpoints_or_configs_are_told(home, train, tmp_path):
    run = tmp_path / "run"
    train(home.game_config, run, "train.steps=2")
    shutil.copytree(run, tmp_path / "other")

    def apart() -> None:
        mine = run if os.environ["RANK"] == "0" else tmp_path / "nothing"
        train(home.game_config, mine, "train.steps=4")

    assert together(2, apart, tmp_path / "said") == [2, 2]
    for rank in (0, 1):
        assert "checkpoints of different steps (2, 0)" in (tmp_path / "said" / str(rank)).read_text()

    def unlike() -> None:
        train(home.game_config, run, "train.steps=4", f"train.lr={0.01 * (1 + int(os.environ['RANK']))}")

    assert together(2, unlike, tmp_path / "said") == [2, 2]
    assert "different configs" in (tmp_path / "said" / "0").read_text()
