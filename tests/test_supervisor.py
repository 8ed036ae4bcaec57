"""The supervisor of a run, by lists of events: very many orders of them, and what must hold after each.

`World` holds virtual parties that answer the supervisor's commands at any later moment. At every step one of all that
can happen is picked: by chance, or in turn until all orders have been seen. What the supervisor must do is kept a
second time here, from what it has been told. EASGD_SUPERVISOR_ORDERS=1000000 takes as many orders by chance instead of
a few thousand, EASGD_SUPERVISOR_DEEPER=1 all orders of one event more.
"""

from __future__ import annotations

import logging
import os
import random
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from easgd_cli.launcher.job import Outcome
from easgd_cli.launcher.journal.journal import Journal
from easgd_cli.launcher.journal.levels import Levels
from easgd_cli.launcher.journal.snapshot_queue import InPlace, Snapshot, SnapshotQueue
from easgd_cli.launcher.journal.system_rows import SystemRows
from easgd_cli.launcher.supervisor.commands import (
    Begin,
    Command,
    GiveUpWorker,
    Kill,
    Measure,
    StartEvaluator,
    StartMaster,
    StartWorker,
    Stop,
    TakeCheckpoint,
    TakeSnapshot,
    Wake,
)
from easgd_cli.launcher.supervisor.course import Patience
from easgd_cli.launcher.supervisor.losses import Lives
from easgd_cli.launcher.supervisor.parties import EVALUATOR, MASTER, Party, title
from easgd_cli.launcher.supervisor.supervisor import Plan, Supervisor
from easgd_cli.problems.classification import METRICS
from easgd_cli.record.checkpoint import Checkpoint, OwnerState, WorkerState
from easgd_cli.record.metrics import worker_name
from easgd_cli.training.gathering import Each, Gathering, Round
from easgd_cli.training.snapshot import Moment
from easgd_cli.transport.base import NEW

PATIENCE = Patience(interrupted=6.0, usual=60.0)
X = {"x": torch.zeros(1)}
PARTS = 5  # of the random orders, each a test


@pytest.fixture(autouse=True)
def unlogged() -> Iterator[None]:
    log = logging.getLogger("easgd.launcher")
    log.disabled = True
    yield
    log.disabled = False


class Nothing:
    """Does nothing, whatever it is asked for."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: None


class Notes(Journal):
    """A journal without files: how a run ends is decided as ever, what is recorded is kept in lists."""

    def __init__(self, written: Callable[[Checkpoint], None]):
        self._levels = Levels({"test_error": 1.0}, METRICS)
        self.resumed, self.status, self.reason, self.signal = None, "completed", None, None
        self.progress: Any = Nothing()
        self._hit: tuple[Moment, dict[str, Tensor]] | None = None
        self._keeper, self._diverges, self._dir = None, True, Path("a run")
        self._record = None
        self._written = written
        self.notes: list[str] = []
        self.failures: list[str] = []
        self.rows: list[dict[str, Any]] = []
        self.order: list[int] = []
        self.finished: list[int] = []
        self.measured: list[Moment] = []
        self.closed: SimpleNamespace | None = None

    @property
    def _recorder(self) -> Any:
        return SimpleNamespace(row=lambda row: row)

    @property
    def evaluated(self) -> tuple[float, int] | None:
        return (self.measured[-1].step, self.measured[-1].exchanges) if self.measured else None

    def evaluation(
        self, moment: Moment, vectors: Callable[[], Mapping[str, Tensor]], metrics: Mapping[str, Mapping[str, float]]
    ) -> None:
        self.measured.append(moment)
        super().evaluation(moment, vectors, metrics)

    def ended(self, worker: int, seconds: Mapping[str, float]) -> None:
        self.finished.append(worker)

    def system(self, moment: Moment, **metrics: Any) -> None:
        self.rows.append(metrics)

    def served(self, workers: list[int]) -> None:
        self.order += workers

    def note(self, text: str) -> None:
        self.notes.append(text)

    def fail(self, reason: str) -> None:
        self.failures.append(reason)
        super().fail(reason)

    def checkpoint(self, checkpoint: Checkpoint) -> bool:
        self._written(checkpoint)
        return True

    @property
    def writing(self) -> bool:
        return False

    def begin_checkpoint(self, checkpoint: Checkpoint) -> None:
        self.checkpoint(checkpoint)

    def close(self, final: Any, keep: Any, steps: Any, exchanges: int, seconds: float, facts: Any) -> Outcome:
        self.closed = SimpleNamespace(
            final=final, keep=keep, steps=steps, exchanges=exchanges, seconds=seconds, facts=facts
        )
        return Outcome(self.status, 0, {}, self.reason)


class InMemory(SnapshotQueue):
    """A queue that writes no files."""

    def __init__(self) -> None:
        super().__init__(Path("unused"))

    def add_copies(self, moment: Moment, vectors: Mapping[str, Tensor]) -> None:
        self.add(moment, InPlace(vectors))

    def _spill(self, snapshot: Snapshot) -> None:
        """It stays in memory."""


@dataclass(frozen=True)
class Shape:
    """A kind of run. `gathers`: alone (one worker, no master), each or round; `evaluation`: interval, asked or
    deferred; `restarts`: how often in a row whoever dies is started again; `least`: with how many workers it begins.
    """

    workers: int
    gathers: str
    evaluation: str
    length: int
    restarts: int = 0
    least: int | None = None


@dataclass(eq=False)
class Process:
    """A virtual party. `said`: what the launcher has not heard yet; `told`: what it has not listened to yet."""

    party: Party
    # waiting, training, posted, replied, closing, leaving, gone; of an evaluator idle, measuring
    phase: str = "starting"
    said: deque[tuple[Any, ...]] = field(default_factory=deque)
    told: deque[tuple[Any, ...]] = field(default_factory=deque)
    alive: bool = True
    frozen: bool = False
    end_told: bool = False
    silence_told: bool = False
    how: tuple[str, bool, bool] = ("killed", False, False)  # it ended: a sentence, refused, raised
    t: int = 0
    stop: bool = False
    mark: str = ""  # of its last reply
    clock: int = 0  # the center's, in that
    fresh: bool = False  # an owner's: changed since its last snapshot
    number: int = 0  # of the snapshot an evaluator has
    returns: bool = False  # a worker that was lost, and has yet to get the center


Action = tuple[str, Process | None]


class Due:
    """In place of a pace: a checkpoint is due when the world says so."""

    def __init__(self) -> None:
        self.now, self.times = False, 0

    def due(self, step: float, seconds: float) -> bool:
        due, self.now = self.now, False
        self.times += due
        return due


class World:
    """A run of virtual parties and the supervisor they are told to. `events`: what it has been told, and
    what it said.
    """

    def __init__(self, shape: Shape):
        self.shape, self.now, self.events = shape, 0.0, list[Any]()
        workers = range(shape.workers)
        self.rounds, self.alone = shape.gathers == "round", shape.gathers == "alone"
        self.due = Due()
        self.plan = Plan(
            not self.alone, self.rounds, shape.evaluation == "asked", shape.evaluation == "deferred", self.due,
            SystemRows(1.0), PATIENCE, shape.restarts, least=shape.least
        )  # type: ignore[arg-type]  # fmt: skip
        self.journal, self.queue = Notes(self.check_written), InMemory()
        start = Moment(0.0, 0.0, 0, dict.fromkeys(workers, 0))
        self.supervisor = Supervisor(self.plan, self.journal, self.queue, start)
        self.parties: dict[Party, Process] = {i: Process(i) for i in workers}
        if not self.alone:
            self.parties[MASTER] = Process(MASTER)
        self.orders: deque[Command] = deque()
        # the master's own
        self.requests: deque[tuple[str, int, int]] = deque()
        self.open = set() if self.alone else set(workers)
        self.gathering: Gathering = Round(workers) if self.rounds else Each()
        self.clocks = dict.fromkeys(workers, 0)
        self.center = self.exchanges = 0
        self.checkpoint_due = False
        self.joining: list[tuple[int, int]] = []
        self.session_of: dict[Party, Process] = dict(self.parties)  # whose the session of a worker is
        self.expected: set[int] = set()  # workers that were lost and may come back, as the master knows it
        self.unreported: list[int] = []
        self.served: list[int] = []
        # what the supervisor has been told, and must have made of it
        self.heard = dict.fromkeys(workers, 0)
        self.finals: dict[int, WorkerState] = {}
        self.owner_final: OwnerState | None = None
        self.lost: dict[int, str] = {}
        self.losses: Counter[int] = Counter()
        self.away: set[int] = set()
        self.deaths_of: dict[Party, tuple[int, float]] = {}  # in a row, and what had been reached at the last
        self.told_exchanges = 0
        self.master_comes = False
        self.greatest = 0.0
        self.taken: list[Moment] = [start]
        self.given: Counter[Party | str] = Counter()
        self.stop_at: float | None = None
        self.killed_at = 0.0  # the master, by the supervisor
        self.asked: SimpleNamespace | None = None  # the checkpoint under way
        self.snapshot_asked = False
        self.deaths = 0
        self.measuring = False
        self.must_fail = False
        self.diverged = False
        self.signals = 0
        self.had_result = False
        if shape.evaluation != "deferred":
            self.supervisor.evaluation.start()
        self.queue.add_copies(start, X)
        self.after()

    # ---------------------------------------------------------------- what can happen

    def options(self, faults: bool = True) -> tuple[list[Action], list[Action]]:
        """All that can happen now: as it should, and as it should not."""
        calm: list[Action] = [("obey", None)] if self.orders else []
        bad: list[Action] = [("signal", None), ("wait long", None), ("checkpoint due", None)] if faults else []
        for p in self.parties.values():
            if p.said:
                calm.append(("hear", p))
            elif not p.alive and not p.end_told and p.phase != "gone":
                calm.append(("hear its end", p))
            if not p.alive or p.phase == "gone":
                continue
            if p.frozen:
                bad.append(("thaw", p))
                if faults and not p.end_told:
                    bad.append(("be silent", p))
            elif p.silence_told:
                calm.append(("go on", p))
            elif action := self._act(p):
                calm.append((action, p))
                if action == "serve" and p.told:  # it hears both, and either first
                    calm.append(("listen", p))
            if faults:
                bad += [("die", p), ("raise", p)]
                if not p.frozen:
                    bad.append(("freeze", p))
                    if p.party != MASTER and (p.party == EVALUATOR or p.phase == "training"):
                        bad.append(("refuse", p))
                    if p.phase == "measuring":
                        bad += [("level reached", p), ("not finite", p)]
                    elif isinstance(p.party, int) and p.phase == "training" and p.t:
                        bad.append(("bad loss", p))
        return calm, bad

    def _act(self, p: Process) -> str:
        """What the party does next, if it does not wait."""
        if p.phase == "starting":
            return "become ready"
        if p.phase == "waiting":
            return "begin" if p.told else ""
        if p.party == EVALUATOR:
            return "measure" if p.phase == "measuring" else "listen" if p.told else ""
        if p.party == MASTER:
            if p.phase == "leaving":
                return "leave"
            return (
                "serve"
                if self.requests
                else "listen"
                if p.told
                else "take a snapshot"
                if self._interval(p)
                else ""
                if self.open or self.expected
                else "say the last"
            )
        if p.phase == "returning":
            return "join" if self.session_of.get(p.party) is p else ""
        if p.phase == "joining":
            return ""
        if p.phase == "training":
            return "listen" if p.told else "take a snapshot" if self.alone and self._interval(p) else "step"
        if p.phase == "posted":
            return "" if self.parties[MASTER].alive or self.shape.restarts else "lose the master"
        return {"replied": "end the step", "closing": "close", "leaving": "leave"}[p.phase]

    def _interval(self, owner: Process) -> bool:
        return owner.fresh and self.shape.evaluation != "asked"

    def do(self, action: Action) -> None:
        """Lets it happen."""
        name, p = action
        self.events.append((name, p.party if p is not None else ""))
        if p is None:
            getattr(self, "_" + name.replace(" ", "_"))()
        else:
            getattr(self, "_" + name.replace(" ", "_"))(p)

    def tell(self, event: str, *args: Any, **more: Any) -> None:
        """An event of the supervisor."""
        self.supervisor.now = self.now
        getattr(self.supervisor, event)(*args, **more)
        self.after()

    # ---------------------------------------------------------------- the launcher

    def _obey(self) -> None:
        command = self.orders.popleft()
        for party, word in self._words(command):
            self.parties[party].told.append(word)
        if isinstance(command, StartEvaluator):
            evaluator = self.parties[EVALUATOR] = Process(EVALUATOR)
            if self.given["begun"]:
                evaluator.told.append(("start",))
        elif isinstance(command, StartWorker):
            back = self.parties[command.worker] = Process(command.worker, t=command.t, returns=True)
            back.told.append(("start",))
            self.parties[MASTER].told.append(("session", back))
        elif isinstance(command, StartMaster):
            self._next_master(command.stopped)
        elif isinstance(command, Begin):
            self.given["begun"] = 1
        elif isinstance(command, Kill):
            self._die(self.parties[command.party])

    def _words(self, command: Command) -> list[tuple[Party, tuple[Any, ...]]]:
        if isinstance(command, Begin):
            return [(party, ("start",)) for party in self.parties]
        if isinstance(command, Measure):
            return [(EVALUATOR, ("measure", command.snapshot.number))]
        if isinstance(command, TakeSnapshot):
            return [(0 if self.alone else MASTER, ("snapshot",))]
        if isinstance(command, TakeCheckpoint):
            return (
                [(MASTER, ("checkpoint",))]
                if command.lead is None
                else [(w, ("checkpoint", w == command.lead)) for w in command.workers]
            )
        if isinstance(command, Stop):
            return ([(MASTER, ("stop",))] if self.rounds else []) + [(w, ("stop",)) for w in command.workers]
        if isinstance(command, GiveUpWorker) and not self.alone:
            return [(MASTER, ("gone", command.worker))]
        return []

    def _next_master(self, stopped: bool) -> None:
        """It finds the center and the order as the last one left them; who waits for a reply asks once more."""
        self.master_comes = False
        master = self.parties[MASTER] = Process(MASTER)
        master.told.append(("start",))
        if stopped and self.rounds:
            master.told.append(("stop",))
        self.served += self.unreported
        unreported, self.unreported = self.unreported, []
        self.requests.clear()
        self.joining.clear()
        self.expected.clear()
        self.checkpoint_due = False
        members = self.supervisor.members
        self.open = {w for w, m in members.items() if m.live or m.away}
        self.gathering = Round(self.open) if self.rounds else Each()
        for worker in sorted(self.open):
            p = self.session_of[worker] = self.parties[worker]
            asks = {"posted": "exchange", "joining": "join", "leaving": "close", "gone": "close"}
            if not p.alive:
                self.requests.append(("lost", worker, 0))
            elif p.phase in asks:
                self.requests.append((asks[p.phase], worker, p.t))
        self.tell("served", unreported)

    def _signal(self) -> None:
        while self.orders:  # before a driver looks at signals it has done what it was asked for
            self._obey()
        self.signals += 1
        self.tell("interrupted", signal.SIGINT)

    def _tick(self) -> None:
        self.now += 0.1
        self.tell("tick", self.now)

    def _wait_long(self) -> None:
        self.now += 61.0
        self.tell("tick", self.now)

    def _checkpoint_due(self) -> None:
        self.due.now = True
        self._tick()

    def _hear(self, p: Process) -> None:
        event, *args = p.said.popleft()
        if event == "advanced":
            self.heard[args[0]] = args[1]
        elif event == "owner_at":
            self.told_exchanges = args[0].exchanges
        elif event == "joined" and args[0] in self.away:
            worker, t = args
            self.away.discard(worker)
            del self.lost[worker]
            self.heard[worker] = t
            if self.asked is not None:
                self.asked.returned.add(worker)
        elif event == "row" and args[0]["train_loss"] != args[0]["train_loss"]:
            self.diverged = self.diverged or self.journal.status == "completed"
        elif event == "worker_state":
            worker, state, final = args
            self.heard[worker] = state.t
            if final:
                self.finals[worker] = state
            if self.asked is not None:
                self.asked.states.append(state)
        elif event == "owner_state":
            if args[1]:
                self.owner_final = args[0]
            elif self.asked is not None:
                self.asked.owners.append(args[0])
        elif event == "snapshot":
            self.taken.append(args[0])
            self.snapshot_asked = False
        elif event == "evaluated":
            self.deaths, self.measuring = 0, False
            losses = args[1]["center"]
            self.diverged = self.diverged or (
                losses["test_loss"] == float("inf") and self.journal.status == "completed" and not self.journal.reached
            )
        self.tell(event, *args)

    def _hear_its_end(self, p: Process) -> None:
        how, refused, raised = p.how
        p.end_told = True
        reached, began = self.journal.reached, bool(self.given["began"])
        self.must_fail |= refused and not reached
        if p.party == EVALUATOR:
            self.measuring = False
            wanted = not self.signals and not reached and self.deaths < 3
            self.deaths += wanted
            self.must_fail |= wanted and (self.deaths == 3 or (raised and not began))
        elif p.party == MASTER:
            if self.owner_final is None and not reached:
                self.master_comes = began and self._lives_again(MASTER, self.told_exchanges)
                hopeless = self.given["kill master"] and bool(self.signals) and not self.diverged
                self.must_fail |= not self.master_comes and not hopeless
                self.snapshot_asked = False
        elif p.party not in self.finals or (self.alone and self.owner_final is None):
            self.losses[p.party] += 1
            if p.party not in self.lost or p.party in self.away:
                self.lost[p.party] = how
            self.away.discard(p.party)
            ending = self.stop_at is not None or (self.rounds and self.finals)
            if began and not refused and not ending and self._lives_again(p.party, self.heard[p.party]):
                self.away.add(p.party)
            everybody = len(self.lost) == self.shape.workers and not self.away
            self.must_fail |= not began or (everybody and self.stop_at is None)
        self.tell("ended", p.party, how, refused=refused, raised=raised)

    def _lives_again(self, party: Party, reached: float) -> bool:
        deaths, before = self.deaths_of.get(party, (0, -1))
        deaths = deaths + 1 if reached <= before else 1
        self.deaths_of[party] = deaths, reached
        return not self.alone and deaths <= self.shape.restarts

    # ---------------------------------------------------------------- the parties

    def _die(self, p: Process) -> None:
        if not p.alive or p.phase == "gone":
            return
        p.alive = False
        if p.party in self.open and p.phase != "leaving" and self.session_of[p.party] is p:
            self.requests.append(("lost", p.party, 0))

    def _raise(self, p: Process) -> None:
        p.how = ("ValueError: no", False, True)
        self._die(p)

    def _refuse(self, p: Process) -> None:
        p.how = ("photo.png cannot be decoded", True, True)
        self._die(p)

    def _lose_the_master(self, p: Process) -> None:
        p.how = ("ended with status 1", False, False)
        self._die(p)

    def _freeze(self, p: Process) -> None:
        p.frozen = True

    def _thaw(self, p: Process) -> None:
        p.frozen = False

    def _be_silent(self, p: Process) -> None:
        new = not p.silence_told and not self.supervisor.over
        p.silence_told = True
        notes = len(self.journal.notes)
        self.tell("silent", p.party, 3.0, stopped=True)
        assert len(self.journal.notes) == notes + new, "a silence is noted once"

    def _go_on(self, p: Process) -> None:
        p.silence_told = False
        self.tell("goes_on", p.party)
        assert self.supervisor.over or self.journal.notes[-1].startswith(f"{title(p.party)} goes on"), (
            "and so is its end"
        )

    def _become_ready(self, p: Process) -> None:
        p.phase = "waiting"
        p.said.append(("ready", p.party))

    def _begin(self, p: Process) -> None:
        [word] = p.told.popleft()
        if word == "start":
            p.phase = (
                "idle"
                if p.party == EVALUATOR
                else "serving"
                if p.party == MASTER
                else "returning"
                if p.returns
                else "training"
            )
        else:
            p.how = ("ended with status 1", False, False)
            self._die(p)

    def _step(self, p: Process) -> None:
        assert isinstance(p.party, int)
        if p.stop or p.t >= self.shape.length:
            self._say_state(p, True)
            p.phase = "closing"
        elif self.alone:
            p.mark, p.clock, p.fresh = "", p.t + 1, True
            self._end_the_step(p)
        else:
            self.requests.append(("exchange", p.party, p.t))
            p.phase = "posted"

    def _join(self, p: Process) -> None:
        assert isinstance(p.party, int)
        self.requests.append(("join", p.party, p.t))
        p.phase = "joining"

    def _welcome(self, master: Process, t: int) -> None:
        for worker, own in self.joining:
            p = self.session_of[worker]
            if self.gathering.over:
                p.how = ("ended with status 1", False, False)
                self._die(p)
                continue
            p.t = self.clocks[worker] = t if self.rounds else max(own, t, self.clocks[worker])
            p.phase, p.returns, p.clock = "training", False, self.center
            self.gathering.join(worker)
            master.said.append(("served", self.unreported))
            self.served += self.unreported
            self.unreported = []
            master.said.append(("returned", worker, p.t))
            p.said.append(("joined", worker, p.t))
        self.joining.clear()

    def _end_the_step(self, p: Process) -> None:
        p.phase = "training"
        if p.mark == "withdrawn":
            p.stop = True
            return
        p.t += 1
        p.said.append(("advanced", p.party, p.t))
        if p.mark == "checkpoint":
            self._say_state(p, False)

    def _say_state(self, p: Process, final: bool) -> None:
        p.said.append(("worker_state", p.party, WorkerState(p.t, X, p.clock), final))

    def _bad_loss(self, p: Process) -> None:
        assert isinstance(p.party, int)
        p.said.append(("row", {"party": worker_name(p.party), "step": p.t, "train_loss": float("nan")}))

    def _close(self, p: Process) -> None:
        assert isinstance(p.party, int)
        p.phase = "leaving"
        if self.alone:
            p.said.append(("owner_state", OwnerState(self._moment(p), p.t, X), True))
        else:
            self.requests.append(("close", p.party, p.t))

    def _leave(self, p: Process) -> None:
        p.phase = "gone"

    def _moment(self, owner: Process) -> Moment:
        clocks = {0: owner.t} if self.alone else dict(self.clocks)
        return Moment(self.now, sum(clocks.values()) / len(clocks), self.exchanges, clocks)

    def _take_a_snapshot(self, owner: Process) -> None:
        owner.fresh = False
        owner.said.append(("snapshot", self._moment(owner), InPlace(X)))

    def _listen(self, p: Process) -> None:
        word, *more = p.told.popleft()
        if word == "stop":
            p.stop = True
            if p.party == MASTER:
                self._give_back(self.gathering.finish())
                self._welcome(p, 0)
        elif word == "session":
            worker = more[0].party
            self._hear_to_its_end(p, worker)
            self.expected.discard(worker)
            self.open.add(worker)
            self.session_of[worker] = more[0]
            if not more[0].alive:
                self.requests.append(("lost", worker, 0))
        elif word == "gone":
            self._hear_to_its_end(p, more[0])
            self.expected.discard(more[0])
        elif word == "snapshot":
            self._take_a_snapshot(p)
        elif word == "measure":
            p.phase, p.number = "measuring", more[0]
        elif p.party == MASTER:
            self.checkpoint_due = True
        elif word == "checkpoint":
            assert isinstance(p.party, int)
            self._say_state(p, False)
            if self.alone:
                p.said.append(("owner_state", OwnerState(self._moment(p), p.t, X), False))
            elif more[0]:
                self.requests.append(("mark", p.party, p.t))

    def _hear_to_its_end(self, master: Process, worker: int) -> None:
        """What a worker has said before it died comes first."""
        if worker not in self.open:
            return
        said = [r for r in self.requests if r[1] == worker and r[0] != "lost"] + [("lost", worker, 0)]
        self.requests = deque(r for r in self.requests if r[1] != worker)
        for request in said:
            self.requests.appendleft(request)
            self._serve(master)

    def _serve(self, master: Process) -> None:
        kind, worker, t = self.requests.popleft()
        if kind == "lost":
            self.open.discard(worker)
            self.gathering.lose(worker)
            self.joining = [(w, own) for w, own in self.joining if w != worker]
            if self.shape.restarts:
                self.expected.add(worker)
        elif kind == "join":
            self.joining.append((worker, t))
            self.gathering.lose(worker)
        else:
            self.clocks[worker] = t
        if kind == "exchange" and self.gathering.over:
            self._give_back([worker])
        elif kind == "exchange":
            self.gathering.arrive(worker)
        elif kind == "mark":
            self._keep(master, False)
        elif kind == "close":
            self.open.discard(worker)
            self._give_back(self.gathering.finish())
        while members := self.gathering.next():
            self.center += 1
            self.exchanges += len(members)
            self.unreported += members
            master.fresh = True
            mark = "checkpoint" if self.checkpoint_due and self.rounds else ""
            self._reply(members, mark)
            if self.joining and self.rounds:
                self._welcome(master, self.clocks[members[0]] + 1)
            if mark:
                self.checkpoint_due = False
                self._keep(master, False)
        if self.joining and (self.gathering.over or not self.gathering.awaited):
            latest = max(*self.clocks.values(), *(own for _, own in self.joining))
            self._welcome(master, latest if self.rounds else 0)

    def _reply(self, workers: list[int], mark: str) -> None:
        for worker in workers:
            p = self.session_of[worker]
            p.mark, p.phase = mark, "replied"
            if mark != "withdrawn":
                p.clock = self.center

    def _give_back(self, workers: list[int]) -> None:
        self._reply(workers, "withdrawn")

    def _keep(self, master: Process, final: bool) -> None:
        master.said.append(("served", self.unreported))
        self.served += self.unreported
        self.unreported = []
        master.said.append(("owner_at", self._moment(master)))
        master.said.append(("owner_state", OwnerState(self._moment(master), self.center, X), final))

    def _say_the_last(self, master: Process) -> None:
        self._keep(master, True)
        master.phase = "leaving"

    def _measure(self, p: Process, error: float = 50.0, loss: float = 1.0) -> None:
        p.phase = "idle"
        p.said.append(("evaluated", p.number, {"center": {"test_error": error, "test_loss": loss}}))

    def _level_reached(self, p: Process) -> None:
        self._measure(p, error=0.0)

    def _not_finite(self, p: Process) -> None:
        self._measure(p, loss=float("inf"))

    # ---------------------------------------------------------------- what must hold after every event

    def after(self) -> None:
        """Takes the commands, and checks them and what is known."""
        over = self.supervisor.over
        for command in self.supervisor.commands():
            self.events.append(command)
            self.check_command(command)
            self.orders.append(command)
            assert not over, "a run that is over asks for nothing"
        left = [self.heard[w] for w in self.heard if w not in self.lost]
        if left:
            self.greatest = max(self.greatest, sum(left) / len(left))
        assert self.supervisor.members.step == self.greatest, (
            "the mean step is that of the workers that are left, and never falls"
        )
        assert self.supervisor.members.alive == len(left), "a dead worker is counted once"
        assert self.journal.measured == self.taken[: len(self.journal.measured)], (
            "snapshots are measured in the order in which they were taken"
        )
        assert self.journal.finished == list(self.finals), "a worker's end is told once"
        if self.supervisor._shutdown.begun and self.stop_at is None:
            self.stop_at = self.now
        assert self.stop_at is not None or not self.journal.decided, "a run that is decided tells its workers to stop"
        if self.supervisor._shutdown.hopeless and not self.given["hopeless"]:
            self.check_hopeless()
        status = self.journal.status
        if self.had_result:
            assert status == "completed", "a run that has its result keeps it"
        self.had_result = self.journal.reached

    def check_command(self, command: Command) -> None:
        """Every command is given once, and only to parties that are there."""
        live = tuple(w for w in self.heard if w not in self.finals and w not in self.lost)
        getattr(self, "check_" + type(command).__name__)(command, live)

    def there(self, party: Party) -> bool:
        return (party == MASTER and self.master_comes) or (party in self.parties and not self.parties[party].end_told)

    def once(self, what: str) -> None:
        assert not self.given[what], f"{what} is commanded once"
        self.given[what] = 1

    def check_Begin(self, _: Command, live: tuple[int, ...]) -> None:
        self.once("began")
        assert len(live) == self.shape.workers and self.stop_at is None, "training begins with everybody"
        assert all(p.phase != "starting" for p in self.parties.values() if p.party != EVALUATOR), (
            "training begins when all are ready"
        )

    def check_Stop(self, command: Stop, live: tuple[int, ...]) -> None:
        self.once("stop")
        assert command.workers == live and live, "those are told to stop that still train"
        assert self.given["began"], "nobody stops before training begins"

    def check_Wake(self, _: Command, live: tuple[int, ...]) -> None:
        self.once("wake")
        assert self.signals == 1 and self.given["began"], "a signal wakes those who stand still"

    def check_Kill(self, command: Kill, live: tuple[int, ...]) -> None:
        assert self.supervisor._shutdown.begun, "nobody is killed while the run goes on"
        if command.party in self.away:  # it would come back only to end
            self.away.discard(command.party)
            return
        self.once(f"kill {command.party}")
        assert self.there(command.party), "only who is there and does not stop is killed"
        patience = PATIENCE.interrupted if self.signals else PATIENCE.usual
        if command.party == MASTER:
            assert self.owner_final is None, "a master that has said its last is let go"
            assert self.shape.restarts, "it is killed where another goes on with its center"
            self.killed_at = self.now
            patience /= 2
            if not self.parties[MASTER].silence_told:
                assert not live, "the master is killed after the last worker, unless it is the one that stands still"
                patience *= 7 / 3
        else:
            waits_for_master = not self.alone and self.parties[MASTER].silence_told and not self.master_comes
            waits_for_master |= bool(self.given["kill master"]) and self.now - self.killed_at <= patience / 3
            assert not waits_for_master, "nobody is blamed for waiting for a master that stands still, or has just come"
            assert command.party in live or (self.alone and self.owner_final is None), (
                "only a worker that has not said its last is killed"
            )
        assert self.stop_at is not None and self.now - self.stop_at > patience, "everybody gets its time"

    def check_hopeless(self) -> None:
        """The run ends without its master, and no other comes."""
        self.once("hopeless")
        patience = PATIENCE.interrupted if self.signals else PATIENCE.usual
        silent = self.parties[MASTER].silence_told
        live = [w for w in self.heard if w not in self.finals and w not in self.lost]
        assert self.supervisor.over and self.owner_final is None, "a master that has said its last is let go"
        assert silent or not live, "nobody gives a master up that may wait for a worker"
        early = silent and not self.shape.restarts
        assert self.stop_at is not None and self.now - self.stop_at > patience * (1 if early else 4 / 3)
        if self.shape.restarts:
            assert self.now - self.killed_at > patience / 3, "after another has had its time"
        self.must_fail |= not self.signals or self.diverged

    def check_TakeSnapshot(self, _: Command, live: tuple[int, ...]) -> None:
        assert self.shape.evaluation == "asked" and not self.snapshot_asked and self.owner_final is None, (
            "one snapshot is asked for at a time"
        )
        assert self.there(0 if self.alone else MASTER) and not self.supervisor._shutdown.begun, (
            "of an owner that is there"
        )
        assert len(self.taken) == len(self.journal.measured), "when nothing waits to be measured"
        self.snapshot_asked = True

    def check_TakeCheckpoint(self, command: TakeCheckpoint, live: tuple[int, ...]) -> None:
        assert command.workers == live and live and self.owner_final is None, (
            "a checkpoint is taken of those that train"
        )
        assert command.lead is None if self.rounds else command.lead in live, (
            "with a lead among them, where there are no rounds"
        )
        assert self.stop_at is None, "before they are told to stop"
        self.given["checkpoints"] += 1
        assert self.given["checkpoints"] <= self.due.times, "when one is due"
        self.asked = SimpleNamespace(at=self.now, states=list(self.finals.values()), owners=[], returned=set())

    def check_StartWorker(self, command: StartWorker, live: tuple[int, ...]) -> None:
        assert command.worker in self.away, "who is started again has been lost, and has got further or not died often"
        assert command.t == self.heard[command.worker], "its clock is its old one"
        assert self.stop_at is None, "nobody comes back to end"

    def check_GiveUpWorker(self, command: GiveUpWorker, live: tuple[int, ...]) -> None:
        assert command.worker not in live and command.worker not in self.away, "it is gone, and does not come back"

    def check_StartMaster(self, command: StartMaster, live: tuple[int, ...]) -> None:
        assert self.master_comes and self.owner_final is None, "it was lost, and the center is not yet kept"
        assert command.stopped or not self.finals, "no round comes after somebody has finished"

    def check_StartEvaluator(self, _: Command, live: tuple[int, ...]) -> None:
        assert not self.there(EVALUATOR) and "evaluator" not in [type(c).__name__ for c in self.orders], (
            "there is one evaluator at a time"
        )
        assert StartEvaluator() not in self.orders, "it is asked for once"
        assert not self.signals and not self.journal.reached and self.deaths < 3, "and only for something to measure"

    def check_Measure(self, command: Measure, live: tuple[int, ...]) -> None:
        evaluator = self.parties[EVALUATOR]
        assert not self.signals and not self.journal.reached and self.deaths < 3, (
            "nothing is measured after the level is reached or a signal"
        )
        assert self.there(EVALUATOR) and evaluator.phase != "starting" and self.given["began"], "who measures is ready"
        assert not self.measuring, "one at a time"
        self.measuring = True
        if self.shape.evaluation == "deferred":
            assert self.owner_final is not None, "measured at the end"
        moment = command.snapshot.moment
        if len(self.journal.measured) == len(self.taken):
            assert self.owner_final is not None and moment == self.owner_final.moment, (
                "the last that is measured is the end"
            )
            self.taken.append(moment)
        assert moment == self.taken[len(self.journal.measured)], (
            "snapshots are measured in the order in which they were taken"
        )

    @property
    def waiting(self) -> list[Moment]:
        """What has been taken and not measured; the one that reached the level, of which none is measured after it,
        too.
        """
        return self.taken[len(self.journal.measured) - self.journal.reached :]

    def check_written(self, checkpoint: Checkpoint) -> None:
        """A checkpoint of a run that goes on."""
        asked = self.asked
        assert asked is not None, "a checkpoint is written that was asked for"
        late = self.now - asked.at > PATIENCE.usual
        assert any(checkpoint.owner is owner for owner in asked.owners), "with its owner's part"
        assert all(any(state is said for said in asked.states) for state in checkpoint.workers.values()), (
            "and parts that were said since"
        )
        assert late or set(checkpoint.workers) >= set(self.heard) - set(self.lost) - asked.returned, (
            "of all that are left and not late, nor have come back since"
        )
        if self.rounds:
            clocks = {state.center_clock for state in checkpoint.workers.values()}
            assert clocks <= {checkpoint.owner.clock}, "in rounds all parts are of one moment"
        waiting = self.waiting
        up_to = checkpoint.owner.moment
        assert [m for m, _ in checkpoint.pending] == [
            m for m in waiting if m.exchanges <= up_to.exchanges and m.seconds <= up_to.seconds
        ]
        self.asked = None

    # ---------------------------------------------------------------- the end

    def finish(self, pick: Callable[[int], int], patiently: bool) -> None:
        """Lets everything that can happen happen: silent parties speak again, or a signal ends the run without them."""
        for p in self.parties.values():
            p.frozen = p.frozen and not patiently
        for _ in range(600):
            if self.supervisor.over:
                break
            calm, _bad = self.options(faults=False)
            if calm:
                self.do(calm[pick(len(calm))])
                continue
            said = len(self.events)
            self.do(("tick", None))
            if self.supervisor.over or len(self.events) > said + 1:
                continue
            assert any(p.frozen for p in self.parties.values()), "a run waits for nobody"
            if not self.signals:
                self.do(("signal", None))
            else:
                self.do(("wait long", None))
        assert self.supervisor.over, "a run ends"
        self.check_end()

    def check_end(self) -> None:
        """What follows the end changes nothing, and the outcome is what was done."""
        journal, status, reason = self.journal, self.journal.status, self.journal.reason
        lost = {
            worker_name(w): "did not finish its step when the run ended" if self.given[f"kill {w}"] else how
            for w, how in self.lost.items()
        }
        for p in self.parties.values():
            if p.alive and p.phase != "gone" and p.party != EVALUATOR:
                self.supervisor.ended(p.party, "killed")
        self.supervisor.interrupted(signal.SIGINT)
        self.supervisor.tick(self.now + 1000)
        assert (journal.status, journal.reason) == (status, reason) and not self.supervisor.commands(), (
            "nothing changes a run that is over"
        )
        if journal.reached:
            wanted = "completed"
        else:
            wanted = (
                "failed"
                if self.must_fail
                else "diverged"
                if self.diverged
                else "interrupted"
                if self.signals
                else "completed"
            )
        assert status == wanted, f"the run is {wanted}"
        if status == "failed":
            assert reason == journal.failures[0], "the first reason of a failure stands"
        self.supervisor.outcome()
        closed = journal.closed
        assert closed is not None
        assert closed.facts["lost"] == lost, "those are lost whose end was told"
        told = Counter(row["lost"] for row in journal.rows if "lost" in row)
        assert all(count <= self.losses[w] for w, count in told.items()), "a death is told once"
        assert closed.steps == self.heard and closed.final is self.owner_final
        assert journal.order == self.served[: len(journal.order)], "the order of exchanges is as it was served"
        if closed.final is None:
            assert (closed.keep is None and status != "completed") or journal.reached, (
                "without its owner nothing is kept, nor complete"
            )
            return
        assert closed.keep.owner is self.owner_final and closed.keep.workers == self.finals, (
            "the last checkpoint holds all that said their last"
        )
        pending, waiting = [m for m, _ in closed.keep.pending], self.waiting
        assert pending in (waiting, [*waiting, closed.final.moment]), "every snapshot is measured or kept"
        if status == "completed" and not journal.reached:
            assert {*self.finals, *self.lost} == set(self.heard), "an end waits for all that are left"
            assert not closed.keep.pending and journal.measured[-1].step == self.owner_final.moment.step, (
                "the end is measured"
            )


# -------------------------------------------------------------------- orders


def told(world: World) -> str:
    return "\n".join(map(str, world.events))


def random_order(seed: int) -> World:
    """One order by chance: of a kind of run, how often something goes wrong, and how long chance lasts."""
    chance = random.Random(seed)
    gathers = chance.choice(("alone", "each", "each", "round", "round"))
    shape = Shape(
        1 if gathers == "alone" else chance.randint(1, 3),
        gathers,
        chance.choice(("interval", "asked", "deferred")),
        chance.randint(1, 4),
        chance.choice((0, 0, 1, 3)),
    )
    faults = chance.choice((0.0, 0.02, 0.05, 0.1, 0.3))
    world = World(shape)
    try:
        for _ in range(chance.choice((10, 30, 60, 120))):
            if world.supervisor.over:
                break
            draw = chance.random()
            calm, bad = world.options()
            if draw < faults:
                kind = chance.choice(sorted({name for name, _ in bad}))  # the rare kinds as often as the others
                world.do(chance.choice([action for action in bad if action[0] == kind]))
            elif not calm or draw > 0.9:
                world.do(("checkpoint due" if draw > 0.98 else "tick", None))
            else:
                world.do(chance.choice(calm))
        world.finish(lambda n: chance.randrange(n), patiently=chance.random() < 0.5)
    except Exception as e:
        raise AssertionError(f"{e or type(e).__name__}\norder {seed} of {shape}:\n{told(world)}") from e
    return world


@pytest.mark.parametrize("part", range(PARTS))
def test_whatever_happens_in_whatever_order_a_run_ends_as_it_should(part: int) -> None:
    number = int(os.environ.get("EASGD_SUPERVISOR_ORDERS", 10_000)) // PARTS
    first = int(os.environ.get("EASGD_SUPERVISOR_FIRST", 0)) + part * number
    ends: Counter[str] = Counter()
    for seed in range(first, first + number):
        world = random_order(seed)
        ends[world.journal.status] += 1
        ends["reached"] += world.journal.reached
        ends["lost"] += bool(world.lost)
        ends["killed"] += any(str(what).startswith("kill") for what in world.given)
        ends["returned"] += any("returned" in row for row in world.journal.rows)
        ends["master restarted"] += any("restarts" in row and "returned" not in row for row in world.journal.rows)
        ends["master replaced"] += world.given["kill master"]
        ends["master given up"] += world.given["hopeless"]
    for what in (
        "completed", "diverged", "failed", "interrupted", "reached", "lost", "killed", "returned", "master restarted",
        "master replaced", "master given up",
    ):  # fmt: skip
        assert ends[what] >= number // 500, f"few orders are {what}: {ends}"


class Choices:
    """Picks in turn, until every sequence of the first `depth` picks has been taken: an odometer whose wheels are found
    on the way.
    """

    def __init__(self, depth: int):
        self._depth = depth
        self._wheels: list[list[int]] = []  # picked, of how many
        self._at = 0

    def pick(self, options: int) -> int:
        if self._at >= self._depth:
            return 0
        if self._at == len(self._wheels):
            self._wheels.append([0, options])
        picked, known = self._wheels[self._at]
        assert known == options, "the same picks lead to the same choice"
        self._at += 1
        return picked

    @property
    def deep(self) -> bool:
        return self._at >= self._depth

    def next(self) -> bool:
        """Begins the next sequence; False when there is none."""
        self._at = 0
        while self._wheels and self._wheels[-1][0] + 1 == self._wheels[-1][1]:
            self._wheels.pop()
        if self._wheels:
            self._wheels[-1][0] += 1
        return bool(self._wheels)


@pytest.mark.parametrize(
    ("shape", "prologue", "depth"),
    [
        (Shape(1, "alone", "interval", 1), 8, 3),
        (Shape(1, "each", "asked", 1), 12, 3),
        (Shape(2, "each", "deferred", 1), 14, 3),
        (Shape(2, "round", "interval", 1), 20, 3),
        (Shape(1, "alone", "asked", 1), 0, 4),
        (Shape(1, "each", "interval", 2, restarts=1), 18, 3),
        (Shape(2, "round", "interval", 2, restarts=1), 24, 3),
    ],
)
def test_all_orders_of_a_few_events_end_as_they_should(shape: Shape, prologue: int, depth: int) -> None:
    """After the first `prologue` events of an undisturbed run anything may happen `depth` times, or as many times more
    as EASGD_SUPERVISOR_DEEPER says, then the run goes to its end.
    """
    choices, seen = Choices(depth + int(os.environ.get("EASGD_SUPERVISOR_DEEPER", 0))), 0
    while True:
        world = World(shape)
        try:
            for _ in range(prologue):
                calm, _bad = world.options()
                world.do(calm[0] if calm else ("tick", None))
            while not choices.deep and not world.supervisor.over:
                calm, bad = world.options()
                every = [*calm, *bad, ("tick", None)]
                world.do(every[choices.pick(len(every))])
            world.finish(lambda n: 0, patiently=bool(seen % 2))
        except Exception as e:
            raise AssertionError(f"{e or type(e).__name__}\n{told(world)}") from e
        seen += 1
        if not choices.next():
            break
    assert seen > 100


# -------------------------------------------------------------------- single orders


def run_of(
    workers: int, gathers: str = "each", evaluation: str = "interval", *, begin: bool = True, restarts: int = 0,
    least: int | None = None,
) -> World:  # fmt: skip
    """A world of which the test tells the supervisor by itself; training has begun."""
    world = World(Shape(workers, gathers, evaluation, 10, restarts, least))
    for party in [*world.parties, EVALUATOR] if begin else []:
        world.supervisor.ready(party)
    world.supervisor.commands()
    return world


def owner_at(t: int) -> OwnerState:
    return OwnerState(Moment(float(t), t, t), t, X)


def checkpoint_asked(world: World) -> TakeCheckpoint:
    world.due.now = True
    world.supervisor.tick(world.supervisor.now)
    [command] = [c for c in world.supervisor.commands() if isinstance(c, TakeCheckpoint)]
    world.journal._written = written = []  # type: ignore[assignment]
    world.journal.checkpoint = written.append  # type: ignore[method-assign]
    return command


def test_a_lead_that_dies_before_its_mark_takes_its_checkpoint_along_and_the_next_has_another() -> None:
    world = run_of(3)
    supervisor = world.supervisor
    assert checkpoint_asked(world) == TakeCheckpoint((0, 1, 2), 0)
    world.due.now = True
    supervisor.tick(supervisor.now)
    assert not any(isinstance(command, TakeCheckpoint) for command in supervisor.commands()), "one at a time"
    supervisor.worker_state(1, WorkerState(4, X), False)
    supervisor.ended(0, "killed by SIGKILL")
    supervisor.worker_state(2, WorkerState(4, X), False)
    supervisor.owner_state(owner_at(4), False)
    assert not world.journal._written
    assert checkpoint_asked(world) == TakeCheckpoint((1, 2), 1)
    supervisor.owner_state(owner_at(9), False)
    for worker in (1, 2):
        supervisor.worker_state(worker, WorkerState(9, X), False)
    [checkpoint] = world.journal._written
    assert sorted(checkpoint.workers) == [1, 2] and checkpoint.owner.clock == 9


def test_a_worker_goes_back_to_the_center_as_often_as_it_gets_further_and_no_checkpoint_waits_for_it() -> None:
    world = run_of(3)
    supervisor = world.supervisor
    supervisor._losses._rejoins = {worker: Lives(2) for worker in range(3)}
    assert checkpoint_asked(world) == TakeCheckpoint((0, 1, 2), 0)
    supervisor.owner_state(owner_at(4), False)
    supervisor.worker_state(0, WorkerState(4, X), False)
    supervisor.rejoins(1, 4, "its loss or gradient is not finite")
    supervisor.worker_state(2, WorkerState(4, X), False)
    [checkpoint] = world.journal._written
    assert sorted(checkpoint.workers) == [0, 2]
    for t in (5, 6, 7, 7):
        supervisor.rejoins(1, t, "its loss or gradient is not finite")
    assert world.journal.status == "completed"
    supervisor.rejoins(1, 7, "its loss or gradient is not finite")
    assert world.journal.status == "diverged"
    assert Stop((0, 1, 2)) in supervisor.commands()


def test_a_lead_that_has_taken_its_last_step_before_it_was_asked_makes_room_for_the_next_checkpoint() -> None:
    world = run_of(2)
    assert checkpoint_asked(world).lead == 0
    world.supervisor.worker_state(0, WorkerState(10, X), True)
    assert checkpoint_asked(world) == TakeCheckpoint((1,), 1)


def test_what_a_worker_says_after_its_part_of_a_checkpoint_does_not_replace_it() -> None:
    """The launcher may hear all of one party before it hears another: of one worker the center and its vectors must
    agree.
    """
    for gathers in ("each", "round"):
        world = run_of(1, gathers)
        checkpoint_asked(world)
        world.supervisor.worker_state(0, WorkerState(5, X, center_clock=5), False)
        world.supervisor.worker_state(0, WorkerState(6, X, center_clock=6), True)
        world.supervisor.owner_state(owner_at(5), False)
        [checkpoint] = world.journal._written
        assert checkpoint.workers[0].t == checkpoint.owner.clock == 5


def test_in_rounds_a_mark_of_before_that_comes_late_makes_no_checkpoint_without_who_has_ended_since() -> None:
    """Two that were asked for have been given up; then a worker has ended, and the mark of the second comes."""
    world = run_of(2, "round")
    supervisor = world.supervisor
    assert checkpoint_asked(world) == TakeCheckpoint((0, 1), None)
    supervisor.tick(PATIENCE.usual + 1)
    supervisor.worker_state(0, WorkerState(10, X, center_clock=10), True)
    assert checkpoint_asked(world) == TakeCheckpoint((1,), None)
    supervisor.worker_state(1, WorkerState(5, X, center_clock=5), False)
    supervisor.owner_state(owner_at(5), False)
    assert not world.journal._written


def test_a_silent_worker_is_killed_after_its_patience_and_the_run_ends_without_it() -> None:
    world = run_of(2)
    supervisor = world.supervisor
    supervisor.interrupted(signal.SIGTERM)
    assert supervisor.commands() == [Wake(), Stop((0, 1))]
    supervisor.worker_state(1, WorkerState(3, X), True)
    supervisor.tick(PATIENCE.interrupted)
    assert supervisor.commands() == []
    supervisor.tick(PATIENCE.interrupted + 0.1)
    supervisor.tick(PATIENCE.interrupted + 0.2)
    assert supervisor.commands() == [Kill(0)]
    supervisor.ended(0, "killed by SIGKILL")
    supervisor.owner_state(owner_at(3), True)
    assert supervisor.over and world.journal.status == "interrupted"
    supervisor.outcome()
    assert world.journal.closed.facts["lost"] == {"worker_00": "did not finish its step when the run ended"}
    assert set(world.journal.closed.keep.workers) == {1}


@pytest.mark.parametrize("interrupted", [True, False])
def test_a_master_that_does_not_end_after_its_workers_is_given_up_and_nobody_is_blamed_for_that(
    interrupted: bool,
) -> None:
    world = run_of(1)
    supervisor = world.supervisor
    if interrupted:
        supervisor.interrupted(signal.SIGINT)
    else:
        supervisor._shutdown.begin(0.0)
    supervisor.worker_state(0, WorkerState(3, X), True)
    supervisor.commands()
    patience = 4 / 3 * (PATIENCE.interrupted if interrupted else PATIENCE.usual)
    supervisor.tick(patience)
    assert not supervisor.over
    supervisor.tick(patience + 0.1)
    assert supervisor.over and supervisor.commands() == [] and "did not answer" in world.journal.reason
    assert world.journal.status == ("interrupted" if interrupted else "failed")


def test_a_master_that_stands_still_is_given_up_and_not_the_workers_that_wait_for_it() -> None:
    world = run_of(2)
    supervisor = world.supervisor
    supervisor.silent(MASTER, 3.0, stopped=True)
    supervisor.interrupted(signal.SIGINT)
    assert supervisor.commands() == [Wake(), Stop((0, 1))]
    supervisor.tick(PATIENCE.interrupted)
    assert not supervisor.over
    supervisor.tick(PATIENCE.interrupted + 0.1)
    assert supervisor.over and supervisor.commands() == []
    supervisor.outcome()
    assert world.journal.status == "interrupted" and world.journal.closed.facts["lost"] == {}


@pytest.mark.parametrize("stands_still", [True, False], ids=["stands still", "does not end"])
def test_another_master_ends_the_run_for_one_that_does_not_answer(stands_still: bool) -> None:
    """Within 10 s of a signal, with the center of this moment."""
    world = run_of(2, restarts=3)
    supervisor, patience = world.supervisor, PATIENCE.interrupted
    if stands_still:
        supervisor.silent(MASTER, 3.0, stopped=True)
    supervisor.interrupted(signal.SIGINT)
    for worker in () if stands_still else (0, 1):
        supervisor.worker_state(worker, WorkerState(3, X), True)
    supervisor.commands()
    due = patience / 2 if stands_still else patience * 7 / 6
    supervisor.tick(due)
    assert supervisor.commands() == []
    for late in (0.1, 0.2):
        supervisor.tick(due + late)
    assert supervisor.commands() == [Kill(MASTER)], "once"
    world.master_comes = True
    supervisor.ended(MASTER, "killed by SIGKILL")
    assert supervisor.commands() == [StartMaster(stopped=True)]
    assert not any("SIGKILL" in note for note in world.journal.notes), "nobody is reported for a signal of our own"
    world.parties[MASTER] = Process(MASTER)  # the next
    for worker in (0, 1) if stands_still else ():
        supervisor.worker_state(worker, WorkerState(3, X), True)
    supervisor.owner_state(owner_at(3), True)
    supervisor.outcome()
    assert supervisor.over and world.journal.status == "interrupted"
    assert world.journal.closed.final is not None and world.journal.closed.facts["lost"] == {}
    assert world.journal.closed.facts["restarts"] == {"master": 1}


def test_a_run_ends_without_its_master_where_the_next_does_not_answer_either() -> None:
    world = run_of(1, restarts=3)
    supervisor, patience = world.supervisor, PATIENCE.interrupted
    supervisor.silent(MASTER, 3.0, stopped=True)
    supervisor.interrupted(signal.SIGINT)
    supervisor.tick(patience / 2 + 0.1)
    world.master_comes = True
    supervisor.ended(MASTER, "killed by SIGKILL")
    supervisor.silent(MASTER, 3.0, stopped=True)
    supervisor.tick(patience * 4 / 3)
    assert not supervisor.over and Kill(0) not in supervisor.commands(), "the worker waits for it"
    supervisor.tick(patience * 4 / 3 + 0.1)
    assert supervisor.over and "nothing of this moment is kept" in world.journal.reason


def test_a_silence_is_told_when_it_begins_and_when_it_is_over_and_not_of_the_dead() -> None:
    world = run_of(2)
    supervisor, journal = world.supervisor, world.journal
    shown: list[list[str]] = []
    journal.progress = SimpleNamespace(silent=lambda said: shown.append(list(said)))
    supervisor.owner_at(Moment(4.0, 10.0, 3))
    supervisor.now = 6.0
    for seconds in (2.0, 3.0):
        supervisor.silent(1, seconds, stopped=True)
    supervisor.silent(EVALUATOR, 12.0, stopped=False)
    assert journal.notes == [
        "worker 1 has said nothing for 2 s: its process is stopped, and SIGCONT lets it go on",
        "the evaluator has said nothing for 12 s",
    ]
    assert shown[-1] == ["worker 1 has said nothing for 3 s", "the evaluator has said nothing for 12 s"]
    supervisor.goes_on(1)
    supervisor.goes_on(0)  # of whom nothing has been told
    supervisor.ended(EVALUATOR, "killed by SIGKILL")
    supervisor.goes_on(EVALUATOR)
    assert shown[-1] == [] and journal.notes[2] == "worker 1 goes on after 3 s of silence"
    assert len(journal.notes) == 4 and "evaluator died" in journal.notes[3]
    assert journal.rows == [
        {"silent": "worker_01", "silent_seconds": 2.0},
        {"silent": "evaluator", "silent_seconds": 12.0},
        {"goes_on": "worker_01", "silent_seconds": 3.0},
    ]


def test_only_a_second_ctrl_c_ends_at_once() -> None:
    """A terminal that closes sends SIGHUP twice, and schedulers send SIGTERM to everybody and again."""
    for first in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        world = run_of(2)
        for number in (first, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1):
            world.supervisor.interrupted(number)
        assert not world.supervisor.over and world.supervisor.commands() == [Wake(), Stop((0, 1))]
        assert world.journal.signal == first and first.name in world.journal.reason
        world.supervisor.interrupted(signal.SIGINT)
        assert world.supervisor.over and world.journal.signal == first


def test_a_single_worker_that_owns_what_is_kept_takes_the_run_along() -> None:
    world = run_of(1, "alone")
    world.supervisor.ended(0, "killed by SIGKILL")
    assert world.supervisor.over and world.journal.reason.startswith("every worker has died (killed by SIGKILL)")
    stopped = run_of(1, "alone")
    stopped.supervisor.interrupted(signal.SIGINT)
    stopped.supervisor.ended(0, "killed by SIGKILL")
    assert stopped.supervisor.over and stopped.journal.status == "interrupted"


def test_workers_that_need_one_another_end_with_the_first_that_is_lost() -> None:
    world = run_of(3, "alone")
    world.supervisor.ended(1, "killed by SIGKILL")
    assert world.supervisor.over and world.journal.status == "failed"
    assert world.journal.reason.startswith("worker 1 died (killed by SIGKILL), and the others cannot go on without it")
    stopped = run_of(3, "alone")
    stopped.supervisor.interrupted(signal.SIGINT)
    stopped.supervisor.ended(1, "killed by SIGKILL")
    assert stopped.supervisor.over and stopped.journal.status == "interrupted"


def test_a_single_worker_lost_between_its_last_state_and_what_it_owns_is_not_waited_for() -> None:
    world = run_of(1, "alone")
    world.supervisor.worker_state(0, WorkerState(10, X), True)
    world.supervisor.ended(0, "killed by SIGKILL")
    assert world.supervisor.over and world.journal.status == "failed"


def test_a_single_worker_that_falls_silent_between_its_last_state_and_what_it_owns_is_killed() -> None:
    world = run_of(1, "alone")
    supervisor = world.supervisor
    supervisor.worker_state(0, WorkerState(10, X), True)
    supervisor.interrupted(signal.SIGINT)
    supervisor.tick(PATIENCE.interrupted + 0.1)
    assert supervisor.commands() == [Wake(), Kill(0)]
    supervisor.ended(0, "killed by SIGKILL")
    assert supervisor.over and world.journal.status == "interrupted"


def test_an_end_waits_for_the_last_state_of_every_worker_also_where_the_owner_is_heard_first() -> None:
    world = run_of(2)
    supervisor = world.supervisor
    supervisor.owner_state(OwnerState(Moment(0.0, 0.0, 0), 0, X), True)
    supervisor.evaluated(1, {"center": {"test_loss": 1.0}})
    supervisor.worker_state(1, WorkerState(10, X), True)
    assert not supervisor.over
    supervisor.worker_state(0, WorkerState(10, X), True)
    assert supervisor.over


def test_an_evaluator_that_dies_three_times_in_a_row_ends_the_run_and_what_is_not_measured_is_kept() -> None:
    world = run_of(1)
    supervisor = world.supervisor
    supervisor.ended(EVALUATOR, "killed by SIGKILL")
    assert supervisor.commands() == [StartEvaluator()]
    supervisor.ended(EVALUATOR, "killed by SIGKILL")  # before it is ready
    [start] = supervisor.commands()
    supervisor.ready(EVALUATOR)
    [measure] = supervisor.commands()
    assert (start, measure.snapshot.number) == (StartEvaluator(), 1)
    supervisor.ended(EVALUATOR, "killed by SIGKILL")
    assert supervisor.commands() == [Stop((0,))] and not supervisor.over
    supervisor.worker_state(0, WorkerState(3, X), True)
    supervisor.owner_state(owner_at(3), True)
    assert (
        supervisor.over
        and world.journal.status == "failed"
        and world.journal.reason.startswith("the evaluator died 3 times in a row")
    )
    supervisor.outcome()
    assert [moment.step for moment, _ in world.journal.closed.keep.pending] == [0.0]


def test_an_evaluator_that_measures_in_between_may_die_more_often() -> None:
    world = run_of(1)
    supervisor = world.supervisor
    for number in range(1, 6):
        supervisor.ready(EVALUATOR)
        supervisor.evaluated(number, {"center": {"test_loss": 1.0}})
        supervisor.snapshot(Moment(number, number, number), InPlace(X))
        supervisor.ended(EVALUATOR, "killed by SIGKILL")
    assert world.journal.status == "completed" and len(world.journal.measured) == 5


def test_a_run_that_has_reached_its_level_keeps_its_result_when_its_parties_die() -> None:
    for party in (MASTER, EVALUATOR, 0):
        world = run_of(2)
        supervisor = world.supervisor
        supervisor.evaluated(1, {"center": {"test_loss": 1.0, "test_error": 0.5}})
        for _ in range(3):
            supervisor.ended(party, "killed by SIGKILL", refused=party != MASTER)
        supervisor.interrupted(signal.SIGINT)
        assert (world.journal.status, world.journal.reason) == ("completed", None)
        assert StartEvaluator() not in supervisor.commands()


def test_a_signal_before_training_begins_ends_the_run_at_once_and_a_second_one_always_does() -> None:
    world = run_of(2, begin=False)
    world.supervisor.interrupted(signal.SIGINT)
    assert world.supervisor.over and world.supervisor.commands() == [] and world.journal.status == "interrupted"
    world = run_of(2)
    world.supervisor.interrupted(signal.SIGINT)
    assert not world.supervisor.over
    world.supervisor.interrupted(signal.SIGINT)
    assert world.supervisor.over and world.journal.notes[-1].startswith("SIGINT again")


def test_a_signal_after_the_end_changes_nothing() -> None:
    world = run_of(1)
    supervisor = world.supervisor
    supervisor.worker_state(0, WorkerState(10, X), True)
    supervisor.owner_state(OwnerState(Moment(0.0, 0.0, 0), 0, X), True)
    supervisor.evaluated(1, {"center": {"test_loss": 1.0}})
    assert supervisor.over
    supervisor.interrupted(signal.SIGINT)
    assert world.journal.status == "completed" and world.journal.signal is None


def test_when_all_workers_are_dead_the_run_says_how_each_died() -> None:
    world = run_of(2)
    world.supervisor.ended(0, "killed by SIGKILL")
    assert not world.supervisor.over and world.supervisor.members.alive == 1
    assert world.journal.notes == ["worker 0 died (killed by SIGKILL); the run goes on with 1 of 2"]
    world.supervisor.ended(1, "MemoryError: no more", log_file="logs/worker_01.log")
    assert world.supervisor.over and world.journal.rows == [{"workers_alive": 1, "lost": 0}]
    assert world.journal.reason.startswith(
        "every worker has died (MemoryError: no more; killed by SIGKILL); see logs/worker_01.log. "
    )


def test_a_party_that_cannot_start_ends_the_run_at_once() -> None:
    could_not = {
        1: "worker 1 could not start: no",
        EVALUATOR: "the evaluator could not start: no",
        MASTER: "the master died (no)",
    }
    for party, reason in could_not.items():
        world = run_of(2, begin=False)
        world.supervisor.ended(party, "no", raised=True)
        assert world.supervisor.over and world.journal.reason.startswith(reason)


def test_training_begins_without_those_that_have_no_host_once_enough_are_there_and_nobody_is_on_the_way() -> None:
    world = run_of(4, begin=False, restarts=1, least=2)
    supervisor = world.supervisor
    supervisor.homeless([1, 2, 3])
    for party in (MASTER, 0):
        supervisor.ready(party)
    assert supervisor.commands() == []  # one is not enough
    supervisor.homeless([2, 3])
    supervisor.homeless([3])  # there are hosts for 1 and 2, which are about to come
    supervisor.ready(1)
    assert supervisor.commands() == []
    supervisor.ready(2)
    assert supervisor.commands() == [Begin(), StartWorker(3, NEW)]
    assert world.journal.notes == ["3 of 4 workers begin; the others come when their hosts do"]
    assert supervisor.members.alive == 3 and world.journal.rows == [{"workers_alive": 3, "lost": 3}]
    supervisor.joined(3, 5)
    assert world.journal.notes[-1] == "worker 3 has come, at its step 5" and supervisor.members.alive == 4
    supervisor.ended(3, "killed by SIGKILL")  # which takes one of its lives; that it came late has taken none
    assert StartWorker(3, 5) in supervisor.commands()


def test_one_that_was_ready_and_has_lost_its_host_is_waited_for_again() -> None:
    world = run_of(2, begin=False, restarts=1)
    supervisor = world.supervisor
    supervisor.ready(1)
    supervisor.homeless([1])
    supervisor.homeless([])  # another is about to have it
    for party in (MASTER, 0):
        supervisor.ready(party)
    assert supervisor.commands() == []
    supervisor.ready(1)
    assert supervisor.commands() == [Begin()]


def test_of_one_that_is_lost_again_before_it_was_back_the_last_reason_is_told() -> None:
    world = run_of(3, begin=False, restarts=1, least=1)
    supervisor = world.supervisor
    supervisor.homeless([1, 2])
    for party in (MASTER, 0):
        supervisor.ready(party)
    for _ in range(2):
        supervisor.ended(1, "killed by SIGSEGV")
    assert supervisor.members.lost == {1: "killed by SIGSEGV", 2: "no host has come for it"}
    assert supervisor.members.alive == 1


def test_in_a_run_that_goes_on_who_had_not_come_yet_comes_as_new_with_a_host_at_once_or_later() -> None:
    world = run_of(3, begin=False, restarts=1, least=1)
    supervisor = world.supervisor
    for worker in (1, 2):
        supervisor.members[worker].new = True
    supervisor.homeless([2])
    for party in (MASTER, 0, 1):
        supervisor.ready(party)
    assert supervisor.commands() == [Begin(), StartWorker(2, NEW)]
    assert supervisor.members.alive == 1 and supervisor.members.away == (1, 2)
    supervisor.ended(1, "killed by SIGKILL")
    assert supervisor.commands() == [StartWorker(1, NEW)]
    supervisor.joined(1, 7)
    assert supervisor.members[1].t == 7 and supervisor.members.lost == {2: "no host has come for it"}


def test_the_next_master_goes_on_after_the_last_snapshot_that_was_said_and_takes_none_again() -> None:
    """Its points of evaluation are those after the latest moment that is known."""
    world = run_of(2, restarts=1)
    supervisor = world.supervisor
    supervisor.owner_at(Moment(1.0, 150.0, 60))
    supervisor.snapshot(Moment(1.5, 200.0, 80), X)
    assert supervisor.moment.step == 200.0
    supervisor.owner_at(Moment(1.4, 190.0, 76))  # which it had said before
    assert supervisor.moment.step == 200.0
    supervisor.owner_at(Moment(1.6, 210.0, 84))
    assert supervisor.moment.step == 210.0


def test_without_a_least_number_everybody_is_waited_for() -> None:
    world = run_of(2, begin=False, restarts=1)
    world.supervisor.homeless([1])
    for party in (MASTER, 0):
        world.supervisor.ready(party)
    assert world.supervisor.commands() == []
    world.supervisor.ready(1)
    assert world.supervisor.commands() == [Begin()]


def test_who_has_no_host_when_somebody_is_done_is_given_up_and_who_has_one_is_not() -> None:
    world = run_of(3, begin=False, restarts=1, least=1)
    supervisor = world.supervisor
    supervisor.homeless([1, 2])
    for party in (MASTER, 0):
        supervisor.ready(party)
    supervisor.homeless([2])  # worker 1 is on the way
    supervisor.commands()
    supervisor.worker_state(0, WorkerState(10, X), True)
    supervisor.tick(1.0)
    assert supervisor.commands() == [Kill(2), GiveUpWorker(2)]
    supervisor.ended(2, "killed by SIGKILL")
    supervisor.joined(1, 0)
    supervisor.worker_state(1, WorkerState(10, X), True)
    supervisor.owner_state(owner_at(10), True)
    assert supervisor.members.lost == {2: "no host has come for it"} and not world.journal.failures
