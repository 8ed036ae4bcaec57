"""What torchrun says of the processes that it starts, and the store by which they find each other.

torch.distributed's store is used for one thing: to tell where the run is reached. It checks nobody, so what is found
there is believed only once the other side has shown that it knows the run's secret.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from easgd_cli.errors import RunError, UsageError

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


@dataclass(frozen=True)
class World:
    """Of which processes this is one: of `size`, `local_size` of them on this host."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    run: str

    def store(self, wait: float) -> Any:
        """The store of these processes, which rank 0 opens where torchrun has not. Raises RunError."""
        import torch.distributed as dist

        hosts = self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        try:
            return dist.TCPStore(self.address, self.port, None, hosts, timedelta(seconds=wait), wait_for_workers=False)
        except (RuntimeError, ValueError) as e:
            line = (str(e).splitlines() or [""])[0]
            raise RunError(
                f"MASTER_ADDR={self.address} MASTER_PORT={self.port}: no store is reached there ({line})."
            ) from e

    @property
    def key(self) -> str:
        """Under which the store has the address of the run; one that torchrun starts again has another."""
        return f"easgd/{self.run}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"

    def publish(self, where: str) -> Any:
        """Says where the run is reached; the store, which is to be kept while others may ask. Raises RunError."""
        store = self.store(60.0)
        store.set(self.key, where)
        return store

    def found(self, wait: float) -> str:
        """Where the run is reached. Raises RunError where nobody says it."""
        try:
            return str(self.store(wait).get(self.key).decode())
        except RuntimeError as e:  # of the store: DistStoreError, DistNetworkError
            raise RunError(
                f"rank 0 of torchrun has not said where the run is reached; its own output says why ({e})."
            ) from e


def world() -> World | None:
    """The processes that torchrun has started, of which this is one; None where it has not. Raises UsageError."""
    if not all(name in os.environ for name in _NAMES):
        return None
    rank, size, local_rank, local_size, address, port, run = (os.environ[name] for name in _NAMES)
    try:
        return World(int(rank), int(size), int(local_rank), int(local_size), address, int(port), run)
    except ValueError as e:
        raise UsageError(
            f"RANK={rank} WORLD_SIZE={size} MASTER_PORT={port}: are numbers, as torchrun gives them."
        ) from e
