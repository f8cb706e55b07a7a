"""What the workers of one run do together; in one process each function returns what belongs to a single worker.

Every worker knows the whole batch of every step and takes its share, so it also knows which comparisons, and which
users, the others have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prlhf.errors import OnAll, PrlhfError

T = TypeVar("T")
BUCKET = 2**23  # numbers in a message of gradients


def count() -> int:
    """How many workers train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This worker's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def own(items: Sequence[T]) -> list[T]:
    """This worker's share of `items`: every `count`-th, starting at its rank. It may be empty."""
    return list(items[rank() :: count()])


def gather(mine: T) -> list[T]:
    """The values of all workers, in the order of their ranks."""
    if count() == 1:
        return [mine]
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, mine)
    return found


def from_first(mine: T) -> T:
    """The value of the first worker."""
    if count() == 1:
        return mine
    found = [mine]
    dist.broadcast_object_list(found, src=0)
    return found[0]


def all_or_none(make: Callable[[], T]) -> T:
    """What `make` returns on this worker.

    Raises:
        OnAll: on every worker, if `make` raises PrlhfError on any; the others would wait for that one.
    """
    made, error = None, None
    try:
        made = make()
    except PrlhfError as raised:
        error = (raised.message, raised.hint)
    errors = [said for said in gather(error) if said]
    if errors:
        raise OnAll(*errors[0])
    return made  # type: ignore[return-value]


def most(number: int) -> int:
    """The largest of the workers' numbers."""
    if count() == 1:
        return number
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    found = torch.tensor(number, device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def spread(items: Sequence[T]) -> list[T]:
    """This worker's share, of the same length on all: the first of `items` fills up the last round."""
    rounds = -(-len(items) // count())
    places = range(rank(), rounds * count(), count())
    return [items[place if place < len(items) else 0] for place in places]


def collect(mine: Sequence[T], length: int) -> list[T]:
    """All `length` results in their order, from every worker's results for its `spread` share."""
    shares = gather(list(mine))
    return [shares[place % count()][place // count()] for place in range(length)]


def average_gradients(parameters: Iterable[nn.Parameter], rows: Mapping[Tensor, Sequence[int]]) -> None:
    """Give `parameters` the mean of all workers' gradients; a worker without a gradient counts with 0.

    `rows` says which rows of a table [m, width] can have a gradient on any worker: only they are exchanged, so that
    the cost is the batch's and not that of all users. The same on every worker, in ascending order.
    """
    if count() == 1:
        return
    dense = []
    for parameter in parameters:
        if parameter in rows:
            at = torch.tensor(rows[parameter], dtype=torch.long, device=parameter.device)
            block = _rows_of(parameter, at)
            _average([block])
            shape = parameter.shape
            parameter.grad = torch.sparse_coo_tensor(at[None], block, shape, check_invariants=False).coalesce()
        elif parameter.numel():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dense.append(parameter.grad)
    for bucket in _buckets(dense):
        _average(bucket)


def _rows_of(table: nn.Parameter, at: Tensor) -> Tensor:
    """The gradient [n, width] of the rows `at`, which are all that have one."""
    block = table.new_zeros(len(at), table.shape[1])
    if table.grad is not None:
        own_grad = table.grad.coalesce()
        block[torch.searchsorted(at, own_grad.indices()[0])] = own_grad.values()
    return block


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """`tensors` of one type in groups of about `BUCKET` numbers: one large message is faster than many small ones."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.numel() > BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


def _average(tensors: list[Tensor]) -> None:
    """Replace each of `tensors` by its mean over the workers, in one message."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    flat /= count()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))
