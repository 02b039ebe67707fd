"""Layouts of the weights of a run: replicated in every process, or sharded over all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from mmcl.config import OptimConfig
from mmcl.encoders.blocks import blocks
from mmcl.encoders.tower import Tower
from mmcl.engine.optim import build_optimizer
from mmcl.methods.method import Method

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs


class Weights(ABC):
    """A method's weights, gradients and optimizer moments in one layout.

    Args:
        accelerator: device, precision and processes.
        method: the method to train, already on its device.
        config: configuration of the optimizer.

    Attributes:
        encode: the callable that runs the method's forward pass.
        optimizer: optimizer of its parameters, wrapped by Accelerate.
        are_sharded: whether a process holds only its shard of the weights.
    """

    are_sharded: ClassVar[bool]
    encode: Any
    optimizer: Any

    @abstractmethod
    def __init__(self, accelerator: Accelerator, method: Method, config: OptimConfig): ...

    @abstractmethod
    def no_sync(self) -> AbstractContextManager[object]:
        """Return a context in which backward passes do not average gradients over the processes."""

    @abstractmethod
    def reduce(self) -> None:
        """Average the gradients that backward passes did not average over the processes; call after a step's last pass."""

    @abstractmethod
    def clip(self, bound: float | None) -> Tensor:
        """Clip the gradient's norm if a bound is given. Returns the norm before clipping, a scalar equal in all processes."""


class ReplicatedWeights(Weights):
    """Replicated weights: every process holds all of them, and DDP averages the gradients."""

    are_sharded = False

    def __init__(self, accelerator: Accelerator, method: Method, config: OptimConfig):
        self.accelerator = accelerator
        accelerator.ddp_handler = ddp_options(method)
        self.encode, self.optimizer = accelerator.prepare(method, build_optimizer(method, config))
        self._parameters = list(method.parameters())  # listed once, because large models have thousands

    def no_sync(self) -> AbstractContextManager[object]:
        context: AbstractContextManager[object] = self.accelerator.no_sync(self.encode)
        return context

    def reduce(self) -> None:
        """Do nothing: DDP has averaged all gradients."""

    def clip(self, bound: float | None) -> Tensor:
        self.accelerator.unscale_gradients()  # under fp16
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        if bound is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, bound, norm)
        return norm


def ddp_options(method: Method) -> DistributedDataParallelKwargs:
    """Return the options of DDP for a method: gradients are stored once, in the buckets that are sent, and only running
    statistics are broadcast, because processes compute them from their own rows. All other buffers are equal anyway."""
    from accelerate.utils import DistributedDataParallelKwargs

    statistics = {id(statistic) for statistic in running_statistics(method)}
    others = [name for name, buffer in method.named_buffers() if id(buffer) not in statistics]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(method, others)
    return DistributedDataParallelKwargs(gradient_as_bucket_view=True)


class ShardedWeights(Weights):
    """Sharded weights: every process holds an equal share of the towers' weights, gradients and moments (Zhao et al., 2023).

    As in FSDP, a block of layers is gathered right before it is used and freed afterwards. Parameters and buffers outside the
    towers (temperature, bias, predictor, prototypes, queues) are small and replicated, so losses are independent of the
    layout; their gradients are averaged here. Weights and sums are float32 under mixed precision too, as with DDP.
    """

    are_sharded = True

    def __init__(self, accelerator: Accelerator, method: Method, config: OptimConfig):
        self.accelerator, self.method = accelerator, method
        shard(method, accelerator.device)
        # In Accelerate, evaluation mode means mixed precision without DDP.
        self.encode = accelerator.prepare_model(method, device_placement=False, evaluation_mode=True)
        self.optimizer = accelerator.prepare_optimizer(build_optimizer(method, config))

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        for unit in _units(self.method):
            unit.set_requires_gradient_sync(False)
        yield
        for unit in _units(self.method):
            unit.set_requires_gradient_sync(True)

    def reduce(self) -> None:
        """Average the gradients of replicated parameters and broadcast the first process's running statistics, as DDP does."""
        grads = [grad for grad in self._grads() if not isinstance(grad, DTensor)]
        if grads:
            joined = torch.cat([grad.flatten() for grad in grads])
            dist.all_reduce(joined)
            for grad, mean in zip(grads, (joined / dist.get_world_size()).split([g.numel() for g in grads]), strict=True):
                grad.copy_(mean.view_as(grad))
        broadcast_statistics(self.method)

    @torch.no_grad()
    def clip(self, bound: float | None) -> Tensor:
        grads = self._grads()
        shares = [grad.to_local() for grad in grads if isinstance(grad, DTensor)]
        whole = [grad for grad in grads if not isinstance(grad, DTensor)]
        squares = _square(shares, self.accelerator.device)
        dist.all_reduce(squares)
        norm = (squares + _square(whole, self.accelerator.device)).sqrt()
        if bound is not None:
            for grad in (*shares, *whole):
                grad.mul_((bound / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def _grads(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.method.parameters() if parameter.grad is not None]


def broadcast_statistics(module: nn.Module) -> None:
    """Replace the running statistics of batch norms by those of the first process. All processes call this."""
    for statistic in running_statistics(module):
        dist.broadcast(statistic, src=0)


def running_statistics(module: nn.Module) -> Iterator[Tensor]:
    """Yield the buffers of batch norms."""
    for norm in module.modules():
        if getattr(norm, "track_running_stats", False):
            yield from norm.buffers(recurse=False)


def _square(tensors: list[Tensor], device: torch.device) -> Tensor:
    return torch.nn.utils.get_total_norm(tensors).to(device).square() if tensors else torch.zeros((), device=device)


def shard(module: nn.Module, device: torch.device) -> None:
    """Shard the weights of every tower, including teachers, over all processes, in place and block by block.

    The parameters are replaced by new objects, so the optimizer must be built afterwards.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for tower in [part for part in module.modules() if isinstance(part, Tower)]:
        for part in (tower.encoder, tower.head):  # the modules that `Tower` calls, for features or for embeddings
            for unit in (*blocks(part), part):
                scalars = {p for p in unit.parameters() if p.ndim == 0}  # scalars cannot be sharded
                if len(scalars) < len(list(unit.parameters())):
                    unit.register_forward_hook(_own_outputs)
                    fully_shard(unit, mesh=mesh, reshard_after_forward=True, ignored_params=scalars)


def _own_outputs(module: nn.Module, inputs: object, output: Any) -> Any:
    """Copy outputs that are views of other tensors.

    FSDP attaches to the output the hook that gathers the weights for the backward pass. An in-place operation on a view, such
    as the next layer's ReLU, would lose this hook.
    """
    if isinstance(output, tuple):
        return tuple(_own_outputs(module, inputs, part) for part in output)
    return output.clone() if isinstance(output, Tensor) and output._is_view() else output


def own_part(tensor: Tensor) -> Tensor:
    """Return this process's shard of a tensor, or all of a replicated one, in the same memory and without gradient."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contextmanager
def gathered_weights(module: nn.Module) -> Iterator[None]:
    """Context in which every process holds all weights and may encode different inputs.

    All processes must enter and leave it together, and the module must not be changed or moved in it. It does nothing for a
    module whose weights are not sharded.
    """
    for unit in _units(module):
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in _units(module):
            unit.reshard()
            unit.set_reshard_after_forward(True, recurse=False)


def _units(module: nn.Module) -> list[FSDPModule]:
    return [unit for unit in module.modules() if isinstance(unit, FSDPModule)]
