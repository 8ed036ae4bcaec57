"""Puts together what several masters say (masters=k): supervisor, record and evaluator know of one master.

Each master owns a slice and takes its own snapshots, at its own place in its own order of exchanges. A master that has
said its slice of a snapshot is not listened to further until all masters have said theirs. So by then the record holds
the exchanges that have led to these slices, and no others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from easgd_cli.launcher.supervisor.parties import ProcessName, master_at
from easgd_cli.order_entry import entry_of
from easgd_cli.system.shared_memory import SharedTensors

Said = tuple[dict[str, Any], SharedTensors | None]

# A master's snapshot is dropped when another master says one of a later kind: its other slices never come.
_ORDER = ("evaluate", "checkpoint", "last", "final")


class Masters:
    """The masters of a run, by their places. `served`: how many exchanges each had served before this start. `heard`:
    how many exchanges of each have been said by now, whether or not they have been passed on.
    """

    def __init__(self, served: Sequence[int]):
        self.heard = list(served)
        self._said: list[deque[Said]] = [deque() for _ in served]
        self._exchanges = sum(served)  # that have been passed on
        self._cpu, self._step = [0.0] * len(served), 0.0
        self._waiting: list[list[int]] = [[] for _ in served]
        self._marked = False  # True while a checkpoint is being taken
        self._ready: set[int] = set()
        self._replaced: set[int] = set()  # places whose master has ended and has no successor yet

    @property
    def parties(self) -> list[ProcessName]:
        """The names of the masters' processes."""
        return [master_at(place) for place in range(len(self._said))]

    def place(self, party: ProcessName) -> int | None:
        """Returns the place of a master; None for any other process."""
        return self.parties.index(party) if isinstance(party, str) and party in self.parties else None

    def ready(self, place: int) -> bool:
        """Notes that the master at `place` waits for training to begin. Returns whether all masters do."""
        self._ready.add(place)
        return len(self._ready) == len(self._said)

    def marks(self) -> None:
        """Notes that a checkpoint is asked for."""
        self._marked = True

    def ended(self, place: int) -> bool:
        """Notes that the master at `place` has died. Returns whether that is news: one that dies while another is about
        to be replaced is replaced with it.
        """
        self._replaced.add(place)
        return len(self._replaced) == 1

    def to_replace(self) -> list[int]:
        """Returns the places whose masters are to be started again now."""
        places, self._replaced = sorted(self._replaced), set()
        return places

    def hear(self, place: int, message: dict[str, Any], tensors: SharedTensors | None) -> Iterator[Said]:
        """Takes a message of one master. Yields the messages that can be passed on by now, as those of one master."""
        if message["kind"] in ("served", "order"):
            self.heard[place] += len(message["workers"])
        if self._marked or message.get("purpose") != "checkpoint" or len(self._said) == 1:
            self._said[place].append((message, tensors))
        yield from self._passed_on()

    def forget_checkpoint(self) -> Iterator[Said]:
        """Gives up the checkpoint that is being taken: its mark may not reach all masters. Yields as `hear` does."""
        self._marked = False
        for place in range(len(self._said)):
            self._drop(place, "checkpoint")
        yield from self._passed_on()

    def forget_last(self, place: int) -> None:
        """Drops the snapshot that the master, which has died, took before the closing exchange: its successor says it
        again.
        """
        self._drop(place, "last")

    def _drop(self, place: int, purpose: str) -> None:
        said = self._said[place]
        self._said[place] = deque(one for one in said if one[0].get("purpose") != purpose)

    def _passed_on(self) -> Iterator[Said]:
        while True:
            for place, said in enumerate(self._said):
                while said and said[0][0]["kind"] != "snapshot":
                    yield self._of_one(place, said.popleft()[0]), None
            if not all(self._said):
                return
            ranks = [_rank(said[0][0]) for said in self._said]
            latest = max(ranks)
            if all(rank == latest for rank in ranks):
                yield self._whole([said.popleft() for said in self._said])
            for said, rank in zip(self._said, ranks, strict=True):
                if rank < latest:
                    said.popleft()

    def _of_one(self, place: int, message: dict[str, Any]) -> dict[str, Any]:
        """Returns the message of one master as that of all masters together."""
        if message["kind"] == "returned":
            # lost steps are counted once, of the first master
            return {**message, "master": place, **({"lost": 0, "missed": 0} if place else {})}
        if message["kind"] not in ("served", "order"):
            return message
        self._exchanges += len(message["workers"])
        entries = [entry_of(worker, place) for worker in message["workers"]]
        if message["kind"] == "order":
            return {**message, "workers": entries}
        self._cpu[place], self._waiting[place] = message["cpu"], message["waiting"]
        self._step = max(self._step, message["step"])
        return {
            **message, "workers": entries, "exchanges": self._exchanges, "cpu": sum(self._cpu), "step": self._step,
            "waiting": sorted({worker for waiting in self._waiting for worker in waiting}),
            "vectors": message["vectors"] / len(self._said),
        }  # fmt: skip

    def _whole(self, said: Sequence[Said]) -> Said:
        """Returns the snapshot that consists of these slices."""
        messages, parts = [message for message, _ in said], [tensors for _, tensors in said if tensors is not None]
        if messages[0]["purpose"] == "checkpoint":
            self._marked = False
        if len(said) == 1:
            return said[0]
        moments = [message["moment"] for message in messages]
        clocks = {worker: max(moment["clocks"][worker] for moment in moments) for worker in moments[0]["clocks"]}
        first, moment = messages[0], {
            "seconds": max(m["seconds"] for m in moments), "step": max(m["step"] for m in moments),
            "exchanges": sum(m["exchanges"] for m in moments), "clocks": clocks,
        }  # fmt: skip
        whole = {**first, "moment": moment}
        if "clock" in first:
            whole["cpu"] = sum(message["cpu"] for message in messages)
            whole["masters"] = [[m["clock"], m["moment"]["exchanges"]] for m in messages]
        return whole, SharedTensors.of({name: torch.cat([part[name] for part in parts]) for name in parts[0].tensors})


def _rank(message: dict[str, Any]) -> tuple[float, ...]:
    """Returns a snapshot's rank. Snapshots of several masters belong together if their ranks are equal; the later has
    the higher.
    """
    which = _ORDER.index(message["purpose"])
    if message["purpose"] == "evaluate":  # by the next points of evaluation, and by the request's number
        return (which, *message["pace"], message.get("number", 0))
    return (which, message.get("mark", 0))
