"""Run forward, backward and updates: in one process, or in several that `accelerate launch` starts.

Several processes either replicate the model (DistributedDataParallel) or shard it (FSDP2), as the
launch configuration says. Sharding is torch's own `fully_shard`, because accelerate shards on
accelerators only, and one path for both can be tested without them.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from csrm_guard_train.model import RuleReader
from csrm_guard_train.recipe import Recipe

__all__ = ["Distributed", "Engine", "Single", "launched", "leave", "make_engine", "product_dtype"]


class Engine(Protocol):
    """What runs a training step.

    Attributes:
        rank: number of this process, from 0.
        world: how many processes there are.
        model: what a batch is given to.
        device: where a batch must be.
    """

    rank: int
    world: int
    model: nn.Module
    device: torch.device

    def part(self, *, last: bool) -> AbstractContextManager[None]:
        """Surround forward and backward of one part of a step."""
        ...

    def update(self, rate: float) -> float:
        """Take one optimizer step at a share of the peak rates; return the gradients' norm."""
        ...

    def total(self, values: Sequence[float]) -> list[float]:
        """Return each value's sum over all processes."""
        ...

    def largest(self, value: int) -> int:
        """Return the largest value of any process."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """Return the whole float32 weights; every process must call it."""
        ...

    def optimizer_state(self) -> dict[str, Any]:
        """Return what `resume` takes; every process must call it."""
        ...

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from an optimizer's state."""
        ...


def launched() -> bool:
    """Tell whether a launcher started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def make_engine(model: RuleReader, recipe: Recipe) -> Engine:
    """Return the engine that the environment asks for."""
    return Distributed(model, recipe) if launched() else Single(model, recipe)


def product_dtype(recipe: Recipe, device: torch.device) -> torch.dtype:
    """Return what matrix products run in: the recipe's precision, but float32 on a CPU that has to emulate bfloat16.

    x86 without AVX-512 takes eight times as long in bfloat16 as in float32.
    """
    emulated = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX", "AVX2")
    return torch.bfloat16 if recipe.precision == "bfloat16" and not emulated else torch.float32


def _optimizer(model: RuleReader, recipe: Recipe) -> torch.optim.AdamW:
    body = [p for p in model.backbone.parameters() if p.requires_grad]
    known = {id(p) for p in model.backbone.parameters()}
    head = [p for p in model.parameters() if id(p) not in known]
    groups = [{"params": body, "peak": recipe.lr}, {"params": head, "peak": recipe.head_lr}]
    # Fused: one pass over weights, gradients and moments; small steps spend a third of their time here otherwise.
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * rate


class Single:
    """One process. bfloat16 runs in a copy, so that small updates are kept in float32 weights.

    The copy halves the memory traffic, which is what training on a CPU waits for.
    """

    rank, world = 0, 1

    def __init__(self, model: RuleReader, recipe: Recipe) -> None:
        self.device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
        self._master = model.to(self.device)
        exact = product_dtype(recipe, self.device) == torch.float32
        self.model: nn.Module = model if exact else copy.deepcopy(model).to(torch.bfloat16)
        self._optimizer = _optimizer(model, recipe)

    def part(self, *, last: bool) -> AbstractContextManager[None]:
        """Surround one part; nothing to do here."""
        del last
        return nullcontext()

    def update(self, rate: float) -> float:
        """Move gradients to the float32 weights, step, and copy the weights back."""
        pairs = list(zip(self._master.parameters(), self.model.parameters(), strict=True))
        apart = self.model is not self._master
        for ours, theirs in pairs if apart else ():
            ours.grad = None if theirs.grad is None else theirs.grad.float()
            theirs.grad = None
        norm = torch.nn.utils.clip_grad_norm_(self._master.parameters(), 1.0)
        _set_rate(self._optimizer, rate)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for ours, theirs in pairs if apart else ():
                theirs.copy_(ours)
        return float(norm)

    def total(self, values: Sequence[float]) -> list[float]:
        """Return the values."""
        return list(values)

    def largest(self, value: int) -> int:
        """Return the value."""
        return value

    def weights(self) -> dict[str, Tensor]:
        """Return the float32 weights."""
        return {name: value.cpu() for name, value in self._master.state_dict().items()}

    def optimizer_state(self) -> dict[str, Any]:
        """Return the optimizer's state."""
        return self._optimizer.state_dict()

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from an optimizer's state."""
        self._optimizer.load_state_dict(state)


class Distributed:
    """One of several processes, each with its share of every step's groups."""

    def __init__(self, model: RuleReader, recipe: Recipe) -> None:
        from accelerate import PartialState

        self._state = PartialState(cpu=not torch.accelerator.is_available())
        self.rank, self.world = self._state.process_index, self._state.num_processes
        self.device = self._state.device
        self._low = product_dtype(recipe, self.device) == torch.bfloat16
        self.sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
        self._reader = model.to(self.device)
        if self.sharded:
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if self._low else MixedPrecisionPolicy()
            for layer in _layers(model):
                fully_shard(layer, mp_policy=policy)
            fully_shard(model, mp_policy=policy)
            self.model: nn.Module = model
        else:
            devices = None if self.device.type == "cpu" else [self._state.local_process_index]
            # The last layer norm of a decoder's unused head and a frozen embedding get no gradient.
            self.model = DistributedDataParallel(model, device_ids=devices, find_unused_parameters=True)
        self._optimizer = _optimizer(model, recipe)

    @contextmanager
    def part(self, *, last: bool) -> Iterator[None]:
        """Surround one part: gradients are exchanged in a step's last one only."""
        low = torch.autocast(self.device.type, torch.bfloat16, enabled=self._low and not self.sharded)
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(last)
        replica = self.model if isinstance(self.model, DistributedDataParallel) else None
        with nullcontext() if replica is None or last else replica.no_sync(), low:
            yield

    def update(self, rate: float) -> float:
        """Take one optimizer step, the same in every process."""
        norm = torch.nn.utils.clip_grad_norm_(self._reader.parameters(), 1.0)
        _set_rate(self._optimizer, rate)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def total(self, values: Sequence[float]) -> list[float]:
        """Return each value's sum over all processes."""
        return self._reduce(list(values), torch.distributed.ReduceOp.SUM)

    def largest(self, value: int) -> int:
        """Return the largest value of any process."""
        return int(self._reduce([float(value)], torch.distributed.ReduceOp.MAX)[0])

    def _reduce(self, values: list[float], how: Any) -> list[float]:  # noqa: ANN401  # torch leaves ReduceOp untyped
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor, op=how)
        found: list[float] = tensor.tolist()
        return found

    def weights(self) -> dict[str, Tensor]:
        """Return the whole weights, gathered from all processes."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        found = get_model_state_dict(self._reader, options=whole)
        return {name: value.clone() for name, value in found.items() if isinstance(value, Tensor)}

    def optimizer_state(self) -> dict[str, Any]:
        """Return the whole optimizer state by parameter name."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return get_optimizer_state_dict(self._reader, self._optimizer, options=whole)

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a whole optimizer state, which every process has read."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

        whole = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(self._reader, self._optimizer, state, options=whole)


def _layers(model: RuleReader) -> list[nn.Module]:
    """Return the backbone's layers, the units that are gathered and freed one by one."""
    for module in model.backbone.modules():
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers:
            return list(module)
    return []


def leave() -> None:
    """End the group of processes, if there is one: who exits while others still speak to it is aborted."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
