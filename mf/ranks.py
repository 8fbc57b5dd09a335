"""Processes that train one model together, and what they send each other (torch.distributed)."""

import pickle
from collections.abc import Sequence
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")

LANES = 4  # shares of the users on a CPU, see ``lane_count``


class Ranks:
    """The processes of one training, numbered 0 … world - 1; this process has number ``rank``.

    Each holds the ratings of its own users and all movies. Every method must be called by all ranks, in the same order.

    Attributes:
        rank, world: number of this process, and number of processes.
        sent: bytes that this rank has sent, as a ring sends them: a sum costs 2 (world - 1) / world of the tensor.
    """

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self.sent = 0

    @classmethod
    def alone(cls) -> Self:
        """A training by one process: nothing is sent."""
        return cls(0, 1)

    @classmethod
    def joined(cls) -> Self:
        """The ranks of the process group that this process has joined (``mf.launch``)."""
        return cls(dist.get_rank(), dist.get_world_size())

    def sum(self, x: Tensor) -> Tensor:
        """``x`` overwritten with its sum over all ranks, the same bits on each; the order of the sum is not fixed."""
        if self.world > 1:
            dist.all_reduce(x)
            self.sent += 2 * (self.world - 1) * _bytes(x) // self.world
        return x

    def sum_rows(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """This rank's rows of the sum of ``x`` over all ranks: ``lengths[r]`` rows are those of rank r, in their order.

        Half the bytes of ``sum``. Terms are added in the order of the ranks.
        """
        if self.world == 1:
            return x
        parts = self._send_rows(x, lengths, [lengths[self.rank]] * self.world)
        for part in parts[1:]:
            parts[0] += part
        return parts[0]

    def exchange(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """Sends ``lengths[r]`` rows of ``x`` to rank r, in the order of the ranks; returns the rows sent to this rank,
        in the order of their senders."""
        if self.world == 1:
            return x
        given = [own[self.rank] for own in self.gather_objects(list(lengths))]
        return torch.cat(self._send_rows(x, lengths, given))

    def _send_rows(self, x: Tensor, lengths: Sequence[int], given: Sequence[int]) -> list[Tensor]:
        """The rows that each rank sends to this one, ``given[r]`` by rank r."""
        found = x.new_empty(sum(given), *x.shape[1:])
        dist.all_to_all_single(found, x.contiguous(), list(given), list(lengths))
        self.sent += _bytes(x) - _bytes(x[: lengths[self.rank]])
        return list(torch.split(found, list(given)))

    def gather(self, x: Tensor) -> Tensor:
        """The rows of every rank's ``x``, in the order of the ranks, on every rank; numbers of rows may differ."""
        if self.world == 1:
            return x
        lengths = self.gather_objects(len(x))
        found = x.new_empty(sum(lengths), *x.shape[1:])
        for r, part in enumerate(torch.split(found, lengths)):
            if r == self.rank:
                part.copy_(x)
            if part.numel():
                dist.broadcast(part, r)
        self.sent += (self.world - 1) * _bytes(x)
        return found

    def gather_objects(self, value: Value) -> list[Value]:
        """Every rank's ``value``, which can be pickled, in the order of the ranks, on every rank."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        self.sent += (self.world - 1) * len(pickle.dumps(value))
        return found

    def gather_rows(self, x: Tensor) -> Tensor:
        """On rank 0 the rows of all ranks, on the CPU, in the order of the ranks; on the others none.

        Only rank 0 needs the memory for them.
        """
        if self.world == 1:
            return x
        shapes = self.gather_objects(tuple(x.shape))
        if self.rank:
            dist.send(x.contiguous(), 0)
            self.sent += _bytes(x)
            return x[:0].cpu()
        rows = torch.empty(sum(shape[0] for shape in shapes), *x.shape[1:], dtype=x.dtype)
        end = len(x)
        rows[:end] = x.cpu()
        for r, shape in enumerate(shapes[1:], start=1):
            part = x.new_empty(shape)
            dist.recv(part, r)
            rows[end : end + len(part)] = part.cpu()
            end += len(part)
        return rows

    def sum_on(self, x: Tensor, rank: int) -> None:
        """On ``rank`` ``x`` is overwritten with its sum over all ranks; on the others what it holds is lost."""
        if self.world > 1:
            dist.reduce(x, rank)
            self.sent += 0 if self.rank == rank else _bytes(x)

    def take_from(self, x: Tensor, rank: int) -> None:
        """``x`` overwritten with that of ``rank``."""
        if self.world > 1:
            dist.broadcast(x, rank)
            self.sent += (self.world - 1) * _bytes(x) if self.rank == rank else 0

    def same(self, x: Tensor) -> Tensor:
        """Rank 0's ``x``: for results that must not differ where processors round differently."""
        if self.world > 1:
            x = x.contiguous()
            dist.broadcast(x, 0)
            self.sent += 0 if self.rank else (self.world - 1) * _bytes(x)
        return x

    def first(self, value: Value) -> Value:
        """Rank 0's ``value``, on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0)
        self.sent += 0 if self.rank else (self.world - 1) * len(pickle.dumps(value))
        return box[0]

    def turn(self, tables: Sequence[Tensor], outgoing: slice, incoming: slice) -> None:
        """Sends the rows ``outgoing`` of each table to the rank below and takes ``incoming`` from the rank above; rank
        0 sends to the last one."""
        if self.world == 1:
            return
        below, above = (self.rank - 1) % self.world, (self.rank + 1) % self.world
        operations = []
        for table in tables:
            leaving = table[outgoing].contiguous()
            operations.append(dist.P2POp(dist.isend, leaving, below))
            operations.append(dist.P2POp(dist.irecv, table[incoming], above))
            self.sent += _bytes(leaving)
        for work in dist.batch_isend_irecv(operations):
            work.wait()


def lane_count(device_type: str, world: int) -> int:
    """Shares ("lanes") of the users that decide which random numbers a user's ratings get.

    On a CPU there are 4 for 1, 2 and 4 processes, so that all three give the same bits; else one per process.
    """
    return LANES if device_type == "cpu" and LANES % world == 0 else world


def lanes_of(rank: int, world: int, lanes: int) -> range:
    """The lanes of a rank."""
    return range(rank * lanes // world, (rank + 1) * lanes // world)


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()
