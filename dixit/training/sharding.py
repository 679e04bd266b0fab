"""The adapter and its optimiser sharded among processes, as the launcher's config says (FSDP2 or DeepSpeed's ZeRO).

Leaves out the layers of the frozen LLM (models/sharding.py).
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from dixit.common import DixitError
from dixit.config import TrainConfig


def configure_deepspeed(settings: TrainConfig, accelerator: Accelerator) -> None:
    """Give DeepSpeed what train.* says. Raises DixitError for what the training loop cannot be sure of."""
    plugin = accelerator.state.deepspeed_plugin
    offload = {plugin.offload_optimizer_device, plugin.offload_param_device} - {None, "none"}
    if plugin.zero_stage not in (1, 2) or offload or settings.mixed_precision != "no":
        raise DixitError("under DeepSpeed training needs zero_stage 1 or 2, no offloading and train.mixed_precision=no"
                         "; see configs/accelerate/deepspeed.yaml")
    plugin.deepspeed_config |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1,  # we divide
                                "gradient_clipping": settings.clip_norm}


def _zero(optimizer: Any) -> Any:
    """DeepSpeed's optimiser, which holds one flat piece of all parameters; None if it is another one."""
    inner = getattr(optimizer, "optimizer", None)
    return inner if hasattr(inner, "single_partition_of_fp32_groups") else None


def whole(tensor: Tensor) -> Tensor:
    """A tensor in one piece, on the CPU. Of a sharded one all processes must ask together."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu().contiguous()


def full_optimizer_states(optimizer: Any, module: nn.Module) -> dict[str, Tensor]:
    """An optimiser's numbers as "PARAMETER.NAME", in one piece. Of sharded ones all processes must ask together."""
    if (zero := _zero(optimizer)) is None:
        return {f"{i}.{k}": whole(v) for i, s in optimizer.state_dict()["state"].items() for k, v in s.items()}
    from deepspeed.utils import safe_get_full_optimizer_state

    held = zero.optimizer.state.get(zero.single_partition_of_fp32_groups[0], {})  # nothing before the first step
    trained = [p for p in module.parameters() if p.requires_grad]
    return {f"{i}.{k}": whole(safe_get_full_optimizer_state(p, k) if v.ndim else v.clone())
            for i, p in enumerate(trained) for k, v in held.items()}


def shard_optimizer_states(optimizer: Any, states: dict[int, dict[str, Tensor]], trained: list[Any]) -> None:
    """Give the whole numbers of a resumed optimiser to its parameters if they have been sharded since."""
    if not states:
        return
    if (zero := _zero(optimizer)) is not None:
        from deepspeed.utils import safe_set_full_optimizer_state

        flat = zero.single_partition_of_fp32_groups[0]
        zero.optimizer.state.clear()  # they are those of parameters that are no more
        zero.optimizer.state[flat] = {k: torch.zeros_like(flat) if v.ndim else v for k, v in states[0].items()}
        zero._lazy_init_hp_params_optimizer_state()  # what its first step does
        for index, parameter in enumerate(trained):
            for name, value in states[index].items():
                if value.ndim:
                    safe_set_full_optimizer_state(parameter, value, name)
    elif isinstance(trained[0], DTensor):
        optimizer.state.clear()
        for index, parameter in enumerate(trained):
            mesh, placements = parameter.device_mesh, parameter.placements
            optimizer.state[parameter] = {
                name: distribute_tensor(value.to(parameter.device), mesh, placements)
                if value.shape == parameter.shape else value for name, value in states[index].items()}
