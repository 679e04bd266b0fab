"""Sharding the layers of the frozen LLM among processes with FSDP2 (`speaker.shard`).

Each process holds its part of every layer. A layer is gathered while it runs, forward and backward, and freed again;
embeddings, the last norm and the head stay whole, because they are read outside the LLM too. All processes must run the
LLM equally often, however long their captions are: speaker.py asks `max_over_processes`.

Leaves out LoRA in a sharded LLM, and reading weights in parts: each process reads the whole LLM into CPU memory once,
before it keeps its part on the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed

from dixit.common import DixitError


def shard_layers(llm: Any, device: torch.device) -> bool:
    """Share a Hugging Face LLM's layers among all processes; whether there are several.

    Raises DixitError if the model does not say which of its modules are layers.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return False
    from torch.distributed.fsdp import fully_shard

    layers = [m for m in llm.modules() if type(m).__name__ in (llm._no_split_modules or ())]
    if not layers:
        raise DixitError(f"{type(llm).__name__} does not name its layers, so it cannot be sharded; set "
                         "speaker.shard=false")
    mesh = distributed.init_device_mesh(device.type, (distributed.get_world_size(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    parts = {p for layer in layers for p in layer.parameters()}
    fully_shard(llm.base_model, mesh=mesh, ignored_params={p for p in llm.parameters() if p not in parts})
    return True


def max_over_processes(count: int, device: torch.device) -> int:
    """The largest count of all processes."""
    found = torch.tensor(count, device=device)
    distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
    return int(found)
