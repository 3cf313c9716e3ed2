"""Two processes with half a batch each normalise like one process with the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from models.encoder.batch_norm import SyncedBatchNorm1d

STEPS = 3
SPLITS = {"halves": (6, 12), "unequal": (4, 12)}


def make_batches(positions: int | None) -> torch.Tensor:
    shape = (STEPS, 12, 5) if positions is None else (STEPS, 12, 5, positions)
    return 100 + 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))  # a mean that would cost digits


def make_layer(kind: type[torch.nn.BatchNorm1d], momentum: float | None) -> torch.nn.BatchNorm1d:
    layer = kind(5, momentum=momentum)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0.5, 2, 5))
        layer.bias.copy_(torch.linspace(-1, 1, 5))
    return layer


def train(layer: torch.nn.BatchNorm1d, batches: torch.Tensor, rows: slice) -> dict[str, torch.Tensor]:
    """A loss that weighs rows unequally, so that gradients through the shared statistics do not cancel."""
    weigh = torch.linspace(-1, 2, 12).view(12, *[1] * (batches.dim() - 2))
    x = batches[:, rows].clone().requires_grad_()
    outputs = torch.stack([layer(step) for step in x])
    torch.autograd.backward((outputs.square() * weigh[rows]).sum())
    assert x.grad is not None and layer.weight.grad is not None and layer.bias.grad is not None
    return {"outputs": outputs.detach(), "inputs": x.grad, "weight": layer.weight.grad, "bias": layer.bias.grad,
            **{f"state.{name}": value for name, value in layer.state_dict().items()}}


def work(rank: int, folder: str, cut: tuple[int, int], positions: int | None, momentum: float | None) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    rows = slice(0, cut[0]) if rank == 0 else slice(*cut)
    torch.save(train(make_layer(SyncedBatchNorm1d, momentum), make_batches(positions), rows), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(("cut", "positions", "momentum"), [("halves", None, 0.1), ("unequal", 7, None)])
def test_two_processes_equal_one_on_the_whole_batch(tmp_path: Path, cut: str, positions: int | None,
                                                    momentum: float | None) -> None:
    spawn(work, args=(str(tmp_path), SPLITS[cut], positions, momentum), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    whole = train(make_layer(torch.nn.BatchNorm1d, momentum), make_batches(positions), slice(0, 12))
    for name, expected in whole.items():
        if name in ("outputs", "inputs"):  # each process holds its rows
            found = torch.cat([first[name], second[name]], 1)
        elif name in ("weight", "bias"):  # gradients add up over processes
            found = first[name] + second[name]
        else:  # running statistics are the same everywhere
            torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
            found = first[name]
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4), f"{name}: {found} is not {expected}"


def test_one_process_equals_batch_norm_bit_for_bit() -> None:
    ours = train(make_layer(SyncedBatchNorm1d, 0.1), make_batches(7), slice(0, 12))
    plain = train(make_layer(torch.nn.BatchNorm1d, 0.1), make_batches(7), slice(0, 12))
    assert ours.keys() == plain.keys()
    assert all(torch.equal(ours[name], plain[name]) for name in plain)


def test_state_moves_to_and_from_batch_norm() -> None:
    ours, plain = SyncedBatchNorm1d(5), torch.nn.BatchNorm1d(5)
    assert list(ours.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(ours.state_dict())
