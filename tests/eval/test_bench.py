"""The bench of scripts/: its rates of products and the roofline by them, on tiny models; how it is kept."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
from towers import make_towers

from eval.tables import find_cell, look_up

SMALL = ["--B", "2", "--N", "2", "--K", "2", "--T", "3", "--C", "4", "--images", "8", "--width", "16"]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = Path(__file__).parents[2] / "scripts" / "bench.py"
    spec = importlib.util.spec_from_file_location("bench", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def small(bench, tiny, tmp_path, monkeypatch):
    make_towers(tmp_path / "cache")
    monkeypatch.setenv("DIXIT_CACHE", str(tmp_path / "cache"))
    shape = bench.Shape(B=2, N=2, K=2, T=3, C=4, images=8, width=16)
    return bench.Bench(shape, str(tiny.llm), "float32", "cpu")


def test_rooflines_are_the_operations_of_the_step_at_the_rates_given(bench, small):
    """Weights of the tiny Llama's layers and head, and the rows of each part of the step."""
    head = small.speaker.llm.get_output_embeddings().weight.numel()
    body = sum(p.numel() for p in small.speaker.llm.parameters()) - head
    seconds = bench.roofline(small, sample_flops=1.0, update_flops=2.0, float32_flops=1.0, bytes_=1e30)
    prefix, captions = 2 * 2 * 3 * body, 2 * (4 * 2 * body + 4 * 3 * head)  # after the start token, 3 and 2 tokens
    assert seconds["sample"] == prefix + captions
    assert seconds["update"] == (prefix + 2 * captions) / 2  # gradients of both, captions once more
    slow = bench.roofline(small, sample_flops=1e30, update_flops=1e30, float32_flops=1e30, bytes_=1.0)
    assert slow["sample"] == 3 * 4 * (head + body)  # every weight is read for every token


def test_rates_at_the_shapes_of_the_step_count_the_products_that_run(bench, small, monkeypatch):
    """The operations of all products that are timed, over the time, by a clock that counts them."""
    now = [0.0]

    def counted(part):
        inner = type(part).__call__

        def call(self, x):
            now[0] += 2 * x.numel() // x.shape[-1] * self.weight.numel()
            return inner(self, x)
        return call

    def backward(x, weight):
        now[0] += 2 * x.numel() // x.shape[-1] * weight.numel()
        return x @ weight.T

    layer = small.speaker.decoder.layers[0]
    monkeypatch.setattr(type(layer.qkv), "__call__", counted(layer.qkv))
    monkeypatch.setattr(bench, "product", backward)
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])
    rates = bench.rates_at_shapes(small)
    assert rates == {"sample_flops": pytest.approx(1.0), "update_flops": pytest.approx(1.0)}


def test_the_table_has_every_variant_and_both_rooflines(bench, small, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.py", *SMALL, "--llm", str(tiny.llm), "--dtype", "float32", "--device",
                                      "cpu", "--repeats", "1", "--out", str(tmp_path / "out")])
    monkeypatch.setattr(bench, "run_alone", lambda *_: {"peak_gb": 1.0})
    bench.main()
    found = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert list(found["seconds"]) == [*bench.VARIANTS, "roofline", "roofline at its shapes"]
    assert set(found["times_as_fast_as"]) == {"dixit, any LLM", "hf float32", "hf bfloat16"}
    assert all(math.isfinite(rate) and rate > 0 for rate in found["rates"].values())
    assert "of their rate at its own shapes" in capsys.readouterr().out


def test_a_bench_is_kept_with_its_ratios(bench, tmp_path):
    parts = {"dixit": {"sample": 1.0, "step": 2.0, "peak_gb": 1.5}, "trl": {"step": 7.0}}
    bench.keep("here", {"command": "python scripts/bench.py", "commit": "abc", "shape": {"B": 8, "N": 4},
                        "dtype": "bfloat16", "device": "cpu", "threads": 2, "compile": "auto", "rates": {"flops": 4e11},
                        "seconds": parts, "update_share_of_matmul_rate": 0.68,
                        "update_share_of_rate_at_shapes": 0.8, "every_step": {"dixit": [1.9, 2.1]}},
               tmp_path)
    assert look_up("bench", "here", "", "trl", "step/relative", folder=tmp_path) == 3.5
    assert look_up("bench", "here", "", "dixit", "every_step/1", folder=tmp_path) == 2.1
    assert look_up("bench", "here", "", "machine", "flops", folder=tmp_path) == 4e11
    assert find_cell("bench", "here", "", tmp_path).note == "B=8, N=4, bfloat16, cpu, 2 threads, compile auto"
    bench.keep_scaling("here", {"command": "python scripts/bench.py --scaling", "commit": "abc", "shape": {"B": 2},
                                "seconds": {"N": [{"N": 2, "step": 1.0}, {"N": 4, "step": 1.5}]}}, tmp_path)
    assert look_up("bench_scaling", "here", "", "dixit", "N=4/step/relative", folder=tmp_path) == 1.5
