"""Batch normalisation whose training statistics are those of the whole batch, however many processes share it.

Legend: B batch of this process, C channels, L positions; all B L values of a channel are normalised together.

`torch.nn.SyncBatchNorm` does the same on GPUs alone; this one also runs on CPU (gloo), so that the claim "two
processes train like one" can be tested on any machine.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class SyncedBatchNorm1d(torch.nn.BatchNorm1d):
    """BatchNorm1d (B C or B C L) with mean and variance over all processes of the default group.

    With one process it *is* BatchNorm1d; parameters, buffers and their names are the same always. Every process must
    call it the same number of times with the same C; batches may differ in size. The gradient is that of the sum of
    all processes' losses, which DistributedDataParallel then averages.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            if self.training:
                _check_count(input.numel() // input.shape[1])
            return super().forward(input)
        self._check_input_dim(input)
        x = input if input.dtype == torch.float64 else input.float()
        axes = [axis for axis in range(x.dim()) if axis != 1]
        with torch.autocast(x.device.type, enabled=False):
            count, mean, variance = _global_moments(x, axes)
            if self.track_running_stats:
                self._update_running(count, mean.detach(), variance.detach())
            out = (x - _beside(mean, x)) * _beside((variance + self.eps).rsqrt(), x)
            if self.affine:
                out = out * _beside(self.weight.to(out.dtype), x) + _beside(self.bias.to(out.dtype), x)
        return out.to(input.dtype)

    @torch.no_grad()
    def _update_running(self, count: Tensor, mean: Tensor, variance: Tensor) -> None:
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None and self.running_var is not None
        self.num_batches_tracked.add_(1)
        # momentum None means the plain average of all batches so far, as in torch
        share = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        unbiased = variance * (count / (count - 1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


def _global_moments(x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Count (scalar), mean (C) and biased variance (C) over all processes.

    Two rounds, since the variance from sums of squares loses its digits when the mean is large.
    """
    local = x.new_tensor([x.numel() // x.shape[1]])
    sums = _sum_over_processes(torch.cat([x.sum(axes), local]))
    count = sums[-1].detach()
    _check_count(int(count))
    mean = sums[:-1] / count
    variance = _sum_over_processes((x - _beside(mean, x)).square().sum(axes)) / count
    return count, mean, variance


def _check_count(count: int) -> None:
    if count <= 1:
        raise ValueError(f"batch normalisation: found {count} value per channel over all processes, expected at least "
                         "2 when training. Use a larger batch_size, accumulate fewer micro-batches, or take layers "
                         "without batch norm.")


def _beside(per_channel: Tensor, x: Tensor) -> Tensor:
    """C -> 1 C or 1 C 1, to broadcast against x."""
    return per_channel.view(1, -1, *[1] * (x.dim() - 2))


class _SumOverProcesses(torch.autograd.Function):
    """y = sum of x over processes. Each process's x is in every process's y, so the gradients are summed as well."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        total = grads[0].clone()
        dist.all_reduce(total)
        return total


def _sum_over_processes(x: Tensor) -> Tensor:
    total: Tensor = _SumOverProcesses.apply(x)
    return total
