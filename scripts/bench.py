"""How fast one step of the game is, side by side with what a user would write or install, and with the machine.

    python scripts/bench.py                      # medians over repeats, taken in turns in this one run
    python scripts/bench.py --trl                # also TRL's GRPO trainer (pip install -e ".[bench]")
    python scripts/bench.py --scaling            # how the step grows with N, C, L, T, dataset and adapter width
    python scripts/bench.py --profile            # where the time goes: a table, and trace.json for a trace viewer
    python scripts/bench.py --device cuda --B 64 --N 8 --repeats 10    # on a GPU; there layers are compiled too

`dixit` is this project, `dixit, any LLM` the decoder that it has for families other than Llama's, on the same LLM.
`hf float32` and `hf bfloat16` are Hugging Face `generate` and a plain update: the prefix
is recomputed for every caption, logits of every place are kept, each listener encodes every caption padded to its
full context. `trl` is GRPOTrainer (LoRA, so that it too leaves the LLM frozen) on a text prompt of K tokens with a
constant reward, so that it spends no time on listeners. `roofline` is the time the step's arithmetic and
memory traffic would take at the copy rate and the best rate of matrix products measured here, at dixit's dtype;
`roofline at its shapes` takes the rate of the LLM's products with the very weights and rows of the step.

Captions are sampled to their full length T by all (the end token is forbidden), so every variant does the same
work. Adapter weights are random: speed does not depend on them. Below the table are dixit's speed relative to each
other variant and the shares of both matrix-product rates that its update reaches. `--keep CONDITION` keeps the
figures in eval/results/bench.csv or bench_scaling.csv. Leaves out data loading.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from dixit.common import DixitError, command_line, git_commit, peak_memory_gb, run_main, write_json  # noqa: E402
from dixit.config import ListenerConfig, SpeakerConfig  # noqa: E402
from dixit.data.assets import asset  # noqa: E402
from dixit.models.clip import build_locked  # noqa: E402
from dixit.models.decoder import HfDecoder, LlamaDecoder  # noqa: E402
from dixit.models.half import product  # noqa: E402
from dixit.models.head import HEAD_BATCH  # noqa: E402
from dixit.models.listeners import ClipListener, score_all  # noqa: E402
from dixit.models.speaker import Captions, Speaker  # noqa: E402
from dixit.training import game, policy  # noqa: E402
from eval.commands import add_keep_option  # noqa: E402
from eval.tables import RESULTS, Cell, put, rows_of  # noqa: E402

VARIANTS = "dixit", "dixit, any LLM", "hf float32", "hf bfloat16"


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes of one step, by the letters of docs/glossary.md."""

    B: int = 8
    N: int = 4
    K: int = 12
    T: int = 16
    C: int = 10
    L: int = 2
    images: int = 2000  # of the dataset
    width: int = 256  # of the adapter


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


class Bench:
    """A step of the game on random patches and real pretrained models."""

    def __init__(self, shape: Shape, llm: str, dtype: str, device: str, compile: str = "auto", general: bool = False):
        self.shape, self.device = shape, torch.device(device)
        config = SpeakerConfig(llm=llm, prefix=shape.K, max_tokens=shape.T, width=shape.width, dtype=dtype,
                               compile=compile)
        self.speaker = Speaker(config, 64, 512, device=device)
        self.speaker.eos = -1  # never drawn: captions have their full length
        if general:
            self.speaker.decoder = HfDecoder(self.speaker.llm)
        self.optimizer = torch.optim.AdamW(self.speaker.trained.parameters(), lr=1e-6)
        self.clip = build_locked("lite0", device=device)
        images = F.normalize(torch.randn(shape.images, 256), dim=1)
        self.listeners = [ClipListener(self.clip, images.roll(i, 0), ListenerConfig(str(i))) for i in range(shape.L)]
        self.weights = torch.tensor([1.0] + [-1.0] * (shape.L - 1), device=device)
        self.patches = torch.randn(shape.B, 64, 512, device=device)
        self.step_number = 0

    def draw(self) -> tuple[Tensor, Tensor]:
        """Uniforms (S, T) and candidates (S, C) of a step."""
        s, g = self.shape, torch.Generator().manual_seed(self.step_number)
        self.step_number += 1
        candidates = torch.stack([torch.randperm(s.images, generator=g)[:s.C] for _ in range(s.B)])
        return (torch.rand(s.B * s.N, s.T, generator=g).to(self.device),
                candidates.to(self.device).repeat_interleave(s.N, 0))

    def timed(self, seconds: dict[str, float], part: str, work: Callable[[], Any]) -> Any:
        synchronize(self.device)
        began = time.perf_counter()
        with torch.profiler.record_function(part):  # names the part in a trace
            made = work()
        synchronize(self.device)
        seconds[part] = time.perf_counter() - began
        return made

    def finish(self, seconds: dict[str, float], prefix: Tensor, logits: Tensor,
               logprobs: Callable[[Tensor], tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Reward and update, shared by all variants; `logprobs(prefix)` returns log-probs and mask (S, T)."""
        reward = game.listener_reward("sub_chance", logits, self.weights)
        advantage = policy.leave_one_out_advantage(reward.unflatten(0, (-1, self.shape.N))).flatten()

        def update() -> None:
            logp, mask = logprobs(prefix)
            policy.policy_loss(logp, mask, advantage).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

        self.timed(seconds, "update", update)
        seconds["step"] = sum(seconds.values())
        return seconds

    def dixit(self) -> dict[str, float]:
        """One step like that of dixit/training/game_task.py; returns the seconds of each part."""
        seconds: dict[str, float] = {}
        speaker, (uniforms, candidates) = self.speaker, self.draw()
        prefix = self.timed(seconds, "adapter", lambda: speaker.trained(self.patches))
        run: list[Any] = []  # the prefix runs once, for both

        def sample() -> Captions:
            run.append(speaker.prefill(prefix))
            return speaker.sample(prefix.detach(), uniforms, run=run[0])

        tokens, mask, _ = self.timed(seconds, "sample", sample)
        with torch.no_grad():
            logits = self.timed(seconds, "score", lambda: score_all(self.listeners, speaker.decode(tokens, mask),
                                                                    candidates))
        return self.finish(seconds, prefix, logits, lambda p: (speaker.logprobs(p, tokens, mask, run=run[0]), mask))

    def hf(self) -> dict[str, float]:
        """One step with Hugging Face `generate` and a plain update."""
        from transformers import GenerationConfig

        seconds: dict[str, float] = {}
        shape, speaker, (_, candidates) = self.shape, self.speaker, self.draw()
        llm = speaker.llm
        prefix = self.timed(seconds, "adapter", lambda: speaker.trained(self.patches))
        embed = llm.get_input_embeddings()
        start = embed(torch.full((shape.B * shape.N, 1), speaker.start, device=self.device))
        settings = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=shape.T,
                                    min_new_tokens=shape.T, pad_token_id=0, eos_token_id=None)

        def sample() -> Tensor:
            inputs = torch.cat([start, prefix.detach().to(llm.dtype).repeat_interleave(shape.N, 0)], 1)
            mask = torch.ones(inputs.shape[:2], dtype=torch.long, device=self.device)
            return llm.generate(inputs_embeds=inputs, attention_mask=mask, generation_config=settings)

        def score(texts: list[str]) -> Tensor:
            rows = []
            for listener in self.listeners:
                embedded = self.clip.model.encode_text(self.clip.tokenizer(texts).to(self.device), normalize=True)
                rows.append(self.clip.scale * torch.einsum("se,sce->sc", embedded, listener.images[candidates]))
            return torch.stack(rows)

        def logprobs(p: Tensor) -> tuple[Tensor, Tensor]:
            inputs = torch.cat([start, p.to(llm.dtype).repeat_interleave(shape.N, 0), embed(tokens)], 1)
            logits = llm(inputs_embeds=inputs).logits[:, shape.K:-1].float()
            return logits.log_softmax(-1).gather(2, tokens[..., None]).squeeze(2), torch.ones_like(tokens).bool()

        with torch.no_grad():
            tokens = self.timed(seconds, "sample", sample)
            texts = speaker.tokenizer.batch_decode(tokens, skip_special_tokens=True)
            logits = self.timed(seconds, "score", lambda: score(texts))
        return self.finish(seconds, prefix, logits, logprobs)


def trl_seconds(shape: Shape, llm: str, device: str, steps: int) -> list[dict[str, float]]:
    """Seconds per step of TRL's GRPOTrainer at the same number and length of captions; the first step is left out."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    folder = str(asset(llm))
    prompt = AutoTokenizer.from_pretrained(folder).decode(list(range(1000, 1000 + shape.K)))
    times: list[float] = []

    def reward(completions: list[str], **_: Any) -> list[float | None]:
        return [float(len(c) % 7) for c in completions]

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            synchronize(torch.device(device))
            times.append(-time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            synchronize(torch.device(device))
            times[-1] += time.perf_counter()

    with tempfile.TemporaryDirectory() as out:
        settings = GRPOConfig(
            output_dir=out, per_device_train_batch_size=shape.B * shape.N, num_generations=shape.N, beta=0.0,
            max_completion_length=shape.T, max_steps=steps + 1, use_cpu=device == "cpu", bf16=True, report_to=[],
            gradient_checkpointing=False, save_strategy="no", logging_strategy="no", disable_tqdm=True,
            generation_kwargs={"min_new_tokens": shape.T}, model_init_kwargs={"dtype": "bfloat16"})
        GRPOTrainer(
            model=folder, reward_funcs=reward, args=settings,
            train_dataset=Dataset.from_dict({"prompt": [prompt] * 256}), callbacks=[Clock()],
            peft_config=LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")).train()
    return [{"step": seconds} for seconds in times[1:]]


def best_seconds(work: Callable[[], Any], device: torch.device, repeats: int = 7) -> float:
    """The shortest of several times."""
    times = []
    for _ in range(repeats):
        synchronize(device)
        began = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times)


def machine_rates(dtype: torch.dtype, device: str) -> dict[str, float]:
    """Best of several: FLOP/s of a large matrix product, bytes/s of a large copy (read and write counted)."""
    where = torch.device(device)
    size = 8192 if device != "cpu" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    source = torch.empty(2**26 if device == "cpu" else 2**28, device=device)
    target = torch.empty_like(source)
    return {"flops": 2 * size**3 / best_seconds(lambda: a @ b, where),
            "bytes": 2 * source.nbytes / best_seconds(lambda: target.copy_(source), where)}


def step_flops(s: Shape, body: int, head: int) -> tuple[int, int]:
    """FLOPs of sampling and of the update, for so many weights in the LLM's body and head.

    2 per weight and token forward, as many again for the gradient with respect to the inputs; the prefix runs forward
    once, in sampling.
    """
    captions, prefix = s.B * s.N, 2 * s.B * (s.K + 1) * body
    once = 2 * captions * ((s.T - 1) * body + s.T * head)
    return prefix + once, 2 * once + prefix


@torch.no_grad()
def rates_at_shapes(bench: Bench) -> dict[str, float]:
    """FLOP/s of the matrix products of sampling and of the update: the LLM's one after another, with the weights,
    rows and direction that they have in the step, and nothing in between."""
    s, llm, decoder = bench.shape, bench.speaker.llm, bench.speaker.decoder
    head: Any = llm.get_output_embeddings()
    body: list[Any] = [part for part in llm.modules() if isinstance(part, torch.nn.Linear) and part is not head]
    if isinstance(decoder, LlamaDecoder):  # which joins products that read the same input
        head, body = decoder.head, [part for layer in decoder.layers
                                    for part in (layer.qkv, layer.out, layer.gate_up, layer.down)]

    def seconds(parts: list[Any], rows: int, backward: bool = False) -> float:
        inputs = {width: torch.randn(rows, width, device=bench.device).to(head.weight.dtype)
                  for part in parts for width in part.weight.shape}
        return best_seconds(lambda: [product(inputs[len(part.weight)], part.weight.t()) if backward else
                                     part(inputs[part.weight.shape[1]]) for part in parts], bench.device, 3)

    captions, prompt, tokens = s.B * s.N, s.B * (s.K + 1), s.B * s.N * (s.T - 1)
    batch = min(HEAD_BATCH, captions * s.T)  # rows that the head takes at once in the update
    batches = captions * s.T / batch
    sampling = seconds(body, prompt) + (s.T - 1) * seconds(body, captions) + s.T * seconds([head], captions)
    update = (seconds(body, tokens) + seconds(body, tokens, backward=True) + seconds(body, prompt, backward=True)
              + batches * (seconds([head], batch) + seconds([head], batch, backward=True)))
    sample_flops, update_flops = step_flops(s, sum(part.weight.numel() for part in body), head.weight.numel())
    return {"sample_flops": sample_flops / sampling, "update_flops": update_flops / update}


def roofline(bench: Bench, sample_flops: float, update_flops: float, float32_flops: float,
             bytes_: float) -> dict[str, float]:
    """Seconds of each part at these rates: max(FLOPs / rate of products, weight bytes / copy rate).

    FLOPs are those of `step_flops`; attention and normalisation are left out. A sampling step must read every weight
    once.
    """
    s, llm = bench.shape, bench.speaker.llm
    head = llm.get_output_embeddings().weight
    body = sum(p.numel() for p in llm.parameters()) - head.numel()  # input and output embeddings are one
    sampling, update = step_flops(s, body, head.numel())
    sample = max(sampling / sample_flops, s.T * (body + head.numel()) * head.element_size() / bytes_)
    text = sum(p.numel() for n, p in bench.clip.model.text.transformer.named_parameters() if "embeddings" not in n)
    score = 2 * s.B * s.N * s.T * text / float32_flops
    adapter = sum(p.numel() for p in bench.speaker.trained.parameters())
    seconds = {"sample": sample, "score": score, "update": update / update_flops,
               "adapter": 3 * 2 * s.B * (s.K + 64) * adapter / 2 / float32_flops}
    return seconds | {"step": sum(seconds.values())}


def median_parts(runs: list[dict[str, float]]) -> dict[str, float]:
    return {part: statistics.median(run[part] for run in runs) for part in runs[0]}


def run_alone(variant: str, shape: Shape, arguments: argparse.Namespace, repeats: int = 2) -> dict[str, float]:
    """Seconds of each part and peak memory (GB) of a process that runs one variant alone."""
    words = [sys.executable, __file__, "--only", variant, "--repeats", str(repeats), "--llm", arguments.llm, "--device",
             arguments.device, "--dtype", arguments.dtype, "--compile", arguments.compile]
    for field in dataclasses.fields(Shape):
        words += [f"--{field.name}", str(getattr(shape, field.name))]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise DixitError(f"the bench of '{variant}' failed: {(done.stderr.splitlines() or ['no message'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def scaling(arguments: argparse.Namespace, base: Shape) -> dict[str, list[dict[str, float]]]:
    """Seconds of each part and peak memory as one letter of the shape grows, everything else as in `base`."""
    grids = {"N": (2, 4, 8), "C": (5, 10, 50), "L": (1, 2, 4), "T": (8, 16, 32), "images": (500, 2000, 50_000),
             "width": (128, 256, 512)}
    return {letter: [{letter: v, **run_alone("dixit", dataclasses.replace(base, **{letter: v}), arguments,
                                         arguments.repeats)} for v in values]
            for letter, values in grids.items()}


def print_rows(rows: dict[str, dict[str, Any]], captions: int) -> None:
    print("| variant | sample | score | update | step | captions/s | peak GB | step, relative |")
    print("|---|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        cells = [f"{row[part]:.3f} s" if part in row else "" for part in ("sample", "score", "update", "step")]
        peak = f"{row['peak_gb']:.2f}" if row.get("peak_gb") else ""
        print(f"| {name} | " + " | ".join(cells) + f" | {captions / row['step']:.1f} | {peak} | "
              f"{row['step'] / rows['dixit']['step']:.2f} |")


def profile(bench: Bench, out: Path) -> None:
    """One step under the PyTorch profiler: its parts, what takes most of it (operations, on a GPU kernels), a trace."""
    bench.dixit()
    with torch.profiler.profile() as found:
        seconds = bench.dixit()
    print("part         seconds   share")
    for part, time_ in seconds.items():
        print(f"{part:11s} {time_:8.3f} {time_ / seconds['step']:7.0%}")
    kind = bench.device.type

    def own(event: Any) -> float:
        return (event.self_cpu_time_total if kind == "cpu" else event.self_device_time_total) / 1e6

    events = [e for e in found.key_averages() if e.device_type.name.lower() == kind]
    print(f"\nown seconds   share    calls  on the {kind}")
    for event in sorted(events, key=own, reverse=True)[:20]:
        print(f"{own(event):11.3f} {own(event) / seconds['step']:7.0%} {event.count:8d}  {event.key[:80]}")
    out.mkdir(parents=True, exist_ok=True)
    found.export_chrome_trace(str(out / "trace.json"))
    print(f"\ntrace: {out / 'trace.json'} (chrome://tracing or ui.perfetto.dev)")


def keep(condition: str, results: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write a bench.json to the table of the bench: seconds of each part and of every step, and the ratios."""
    note = ", ".join([*(f"{letter}={value}" for letter, value in results["shape"].items()), results["dtype"],
                      results["device"], f"{results['threads']} threads", f"compile {results['compile']}"])
    cell = Cell("bench", condition, "", results["command"], "", results["commit"], note=note)
    rows, steps = [], results["every_step"]
    for name, parts in results["seconds"].items():
        rows += rows_of(cell, name, parts | {
            "step/relative": parts["step"] / results["seconds"]["dixit"]["step"],
            **{f"every_step/{number}": seconds for number, seconds in enumerate(steps.get(name, []))}})
    rows += rows_of(cell, "dixit", {"update/share_of_matmul_rate": results["update_share_of_matmul_rate"],
                                    "update/share_of_rate_at_shapes": results["update_share_of_rate_at_shapes"]})
    put(cell, rows + rows_of(cell, "machine", results["rates"]), folder)


def keep_scaling(condition: str, results: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write a scaling.json to its table: figures are LETTER=VALUE/PART; relative is over the letter's first value."""
    note = ", ".join(f"{letter}={value}" for letter, value in results["shape"].items())
    cell = Cell("bench_scaling", condition, "", results["command"], "", results["commit"], note=note)
    figures = {f"{letter}={parts[letter]}/{part}": value for letter, column in results["seconds"].items()
               for parts in column for part, value in {
                   **parts, "step/relative": parts["step"] / column[0]["step"]}.items() if part != letter}
    put(cell, rows_of(cell, "dixit", figures), folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(Shape):
        parser.add_argument(f"--{field.name}", type=int, default=field.default)
    parser.add_argument("--llm", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", choices=("auto", "yes", "no"), help="speaker.compile (default: yes on a GPU)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--trl", action="store_true", help="also time TRL's GRPO trainer")
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)
    add_keep_option(parser)
    arguments = parser.parse_args()
    shape = Shape(**{f.name: getattr(arguments, f.name) for f in dataclasses.fields(Shape)})
    on_gpu = torch.device(arguments.device).type == "cuda"
    arguments.compile = arguments.compile or ("yes" if on_gpu else "auto")
    torch.manual_seed(0)
    if arguments.profile:
        return profile(Bench(shape, arguments.llm, arguments.dtype, arguments.device, arguments.compile),
                       arguments.out)
    if arguments.scaling:
        found = scaling(arguments, shape)
        print("| letter | values | step, s | over the first | peak GB |\n|---|---|---|---|---|")
        for letter, column in found.items():
            cells = [[f"{row[letter]:g}" for row in column], [f"{row['step']:.2f}" for row in column],
                     [f"{row['step'] / column[0]['step']:.2f}" for row in column],
                     [f"{row['peak_gb']:.2f}" for row in column]]
            print(f"| {letter} | " + " | ".join(", ".join(c) for c in cells) + " |")
        results: dict[str, Any] = {"command": command_line(), "commit": git_commit(),
                                   "shape": dataclasses.asdict(shape), "seconds": found}
        write_json(arguments.out / "scaling.json", results)
        if arguments.keep:
            keep_scaling(arguments.keep, results)
        return

    variants = [arguments.only] if arguments.only else list(VARIANTS)
    benches: dict[str, Bench] = {}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    for name in variants:
        if name.startswith("dixit"):
            benches[name] = Bench(shape, arguments.llm, arguments.dtype, arguments.device, arguments.compile,
                                  general=name != "dixit")
        else:
            benches[name] = Bench(shape, arguments.llm, name.split()[1], arguments.device)
            benches[name].speaker.llm.set_attn_implementation("sdpa")  # what transformers takes by default
    for turn in range(arguments.repeats + 1):  # alternating, so that other load affects all equally; first: warm-up
        for name, bench in benches.items():
            for timed in (False, True):  # a step finds the caches as the one before it of its own kind left them
                parts = bench.dixit() if name.startswith("dixit") else bench.hf()
                if timed and turn:
                    runs[name].append(parts)
    rows: dict[str, dict[str, Any]] = {name: median_parts(found) for name, found in runs.items()}
    if arguments.only:
        peak = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else peak_memory_gb()
        print(json.dumps({**rows[arguments.only], "peak_gb": peak}))
        return
    if arguments.trl:
        rows["trl"] = median_parts(trl_seconds(shape, arguments.llm, arguments.device, arguments.repeats))
    rates = machine_rates(getattr(torch, arguments.dtype), arguments.device) | rates_at_shapes(benches["dixit"])
    rates["float32_flops"] = float32 = machine_rates(torch.float32, arguments.device)["flops"]
    rows["roofline"] = roofline(benches["dixit"], rates["flops"], rates["flops"], float32, rates["bytes"])
    rows["roofline at its shapes"] = roofline(benches["dixit"], rates["sample_flops"], rates["update_flops"], float32,
                                              rates["bytes"])
    for name in variants:
        rows[name]["peak_gb"] = run_alone(name, shape, arguments)["peak_gb"]
    print_rows(rows, shape.B * shape.N)
    faster = {name: row["step"] / rows["dixit"]["step"] for name, row in rows.items()
              if name != "dixit" and "roofline" not in name}
    share, own_share = (rows[name]["update"] / rows["dixit"]["update"] for name in rows if "roofline" in name)
    print("dixit's step is " + ", ".join(f"{ratio:.1f} times as fast as {name}'s" for name, ratio in faster.items())
          + f"; its update reaches {share:.0%} of the best rate of matrix products ({arguments.dtype}) and "
          f"{own_share:.0%} of their rate at its own shapes")
    print(f"matrix products {rates['flops'] / 1e9:.0f} GFLOP/s ({arguments.dtype}) at best, "
          f"{rates['sample_flops'] / 1e9:.0f} at the shapes of sampling, {rates['update_flops'] / 1e9:.0f} at those of "
          f"the update, {float32 / 1e9:.0f} in float32 at best; copies {rates['bytes'] / 1e9:.1f} GB/s; "
          f"{torch.get_num_threads()} threads")
    results = {
        "command": command_line(), "commit": git_commit(), "shape": dataclasses.asdict(shape),
        "dtype": arguments.dtype, "device": arguments.device, "threads": torch.get_num_threads(),
        "compile": arguments.compile, "rates": rates, "seconds": rows,
        "times_as_fast_as": faster, "update_share_of_matmul_rate": share, "update_share_of_rate_at_shapes": own_share,
        "every_step": {name: [run["step"] for run in found] for name, found in runs.items()}}
    write_json(arguments.out / "bench.json", results)
    if arguments.keep:
        keep(arguments.keep, results)
    print(f"written to {arguments.out / 'bench.json'}")


if __name__ == "__main__":
    run_main(main)
