"""What scripts/mutants breaks, as a table: file, a line of it, what the line becomes. Whoever changes such a line
changes its row.
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
# for tests without a mutant; with one, ten times what they took without, and a minute: then it is endless
SECONDS = 600
PARTS = ("easgd_cli", "tests", "configs", "pyproject.toml")

ALGORITHMS = (
    "tests/test_algorithms.py",
    "tests/test_local_steps.py",
    "tests/test_transport.py::test_staleness_counts_the_updates_of_others_between_two_exchanges",
)
FRAGMENTS = ("tests/test_fragments.py",)
TRANSPORT = ("tests/test_transport.py",)
NETWORK = ("tests/test_network.py",)
VIRTUAL = (
    "tests/test_simulated.py", "-k", "price or queue or longest or straggler or staleness or by_hand or "
    "(middle_of_steps and sync_easgd) or "
    "distribution",
)  # fmt: skip
THEORY = ("tests/test_theory.py", "tests/test_theory_simulation.py")
PEERS = ("tests/test_peers.py", "-k", "mean_of_all or every_so_often or longer")
TESTS = {
    "algorithms/groups.py": ("tests/test_groups.py", "-k", "own_way or meaning or told"),
    "problems/groups.py": ("tests/test_groups.py", "-k", "torchs or tied"),
    "algorithms/wire.py": ("tests/test_wire.py", "-k", "not replayed and not every_launcher"),
    "algorithms/fragments.py": FRAGMENTS,
    "algorithms/slices.py": ("tests/test_masters.py", "-k", "slices or statistics_may"),
    "launcher/processes/masters.py": ("tests/test_masters.py", "-k", "whoever_is_ahead or left_out or forgotten"),
    "algorithms/": ALGORITHMS,
    "training/center.py": (*ALGORITHMS, *FRAGMENTS, "tests/test_ledger.py"),
    "problems/flat.py": ("tests/test_flat.py",),
    "transport/shared.py": TRANSPORT,
    "transport/collective.py": ("tests/test_collective.py",),
    "transport/staging.py": TRANSPORT,
    "transport/on_device.py": TRANSPORT,
    "transport/relay.py": ("tests/test_transport.py", "tests/test_collective.py", "-k", "far or elsewhere"),
    "transport/connection.py": NETWORK,
    "transport/turn.py": NETWORK,
    "launcher/hosts/gate.py": NETWORK,
    "launcher/hosts/door.py": NETWORK,
    "launcher/hosts/far_sessions.py": ("tests/test_transport.py", "-k", "apart or elsewhere"),
    "launcher/hosts/hosted_master.py": ("tests/test_transport.py", "-k", "apart or news_of_a_life"),
    "launcher/hosts/far_children.py": NETWORK,
    "launcher/hosts/stand_in.py": ("tests/test_stand_in.py",),
    "launcher/hosts/words.py": ("tests/test_stand_in.py",),
    "transport/simulated.py": (
        *TRANSPORT,
        "tests/test_simulated.py::test_a_step_lasts_as_long_as_its_rule_says",
        "tests/test_simulated.py::test_taking_turns_reproduces_the_papers_trace",
        "tests/test_simulated.py::test_a_checkpoint_on_the_way_is_one_to_go_on_from",
        "tests/test_masters.py::test_an_exchange_with_k_masters_takes_a_kth_of_the_transfer_and_of_the_service",
    ),
    "transport/shared_link.py": ("tests/test_simulated.py", "-k", "share or large or ring"),
    "launcher/supervisor/beginning.py": ("tests/test_supervisor.py", "-k", "least or no_host or begins_without"),
    "launcher/supervisor/losses.py": ("tests/test_supervisor.py", "-k", "least or no_host or begins_without"),
    "launcher/journal/links.py": ("tests/test_links.py",),
    "launcher/hosts/probe.py": NETWORK,
    "training/data_parallel.py": PEERS,
    "training/peers.py": PEERS,
    "problems/net.py": PEERS,
    "training/gathering.py": ("tests/test_gathering.py", "tests/test_closing.py"),
    "training/returning.py": ("tests/test_gathering.py",),
    "training/mean_clock.py": ("tests/test_gathering.py",),
    "training/ledger.py": ("tests/test_ledger.py",),
    "problems/replicas.py": ("tests/test_replicas.py",),
    "training/couriers.py": (
        "tests/test_ledger.py",
        "tests/test_variables.py::test_real_processes_are_replayed_bit_for_bit_and_go_on",
    ),
    "training/serving.py": ("tests/test_ledger.py",),
    "training/master.py": ("tests/test_ledger.py", "tests/test_closing.py"),
    "launcher/virtual/master.py": (
        "tests/test_gathering.py",
        *VIRTUAL[:-1],
        f"{VIRTUAL[-1]} or exchanges or closing_exchange",
    ),
    "theory/": THEORY,
}

MUTANTS = [
    # groups of parameters
    ("algorithms/groups.py", "return self.factor * self.schedule(t)", "return self.schedule(t)"),
    ("algorithms/groups.py", ".copy_(given[begin:end]).mul_(factor)", ".copy_(given[begin:end])"),
    ("algorithms/groups.py", "(as_one, first), (as_one, second._replace(eta=1.0)), ", ""),
    ("problems/groups.py", "values |= {key: v for key in otherwise", "values = {key: v for key in otherwise"),
    # the methods, beside their listings
    ("algorithms/easgd.py", "w.x.lerp_(center, self.alpha)  # a)", "w.x.lerp_(center, self.alpha * self.alpha)"),
    ("algorithms/easgd.py", "Gradient(self.local.at(w))", "Gradient(w.x)"),
    ("algorithms/easgd.py", "self.local.move(w, g)  # x^i <- x^i - eta g^i(x)", "w.x.sub_(g, alpha=w.eta)"),
    (
        "algorithms/easgd.py",
        "        reply.copy_(center.x)  # a) takes the center as it is before b)\n        center.x.lerp_(m, "
        "n * self.alpha)  # b)",
        "        center.x.lerp_(m, n * self.alpha)\n        reply.copy_(center.x)",
    ),
    ("algorithms/easgd.py", "center.x.lerp_(m, n * self.alpha)", "center.x.lerp_(m, self.alpha)"),
    ("algorithms/eamsgd.py", "w.y.copy_(w.x).add_(w.v, alpha=self.delta)", "w.y.copy_(w.x)"),
    ("algorithms/eamsgd.py", "w.x.lerp_(center, self.alpha)  # a)", "w.x.lerp_(center, self.alpha / w.tau)"),
    (
        "algorithms/eamsgd.py",
        "w.v.mul_(self.delta).sub_(g, alpha=w.eta)",
        "w.v.mul_(self.delta).sub_(g, alpha=w.schedule(w.t + 1))",
    ),
    ("algorithms/eamsgd.py", "w.v.mul_(self.delta).sub_(g, alpha=w.eta)", "w.v.sub_(g, alpha=w.eta).mul_(self.delta)"),
    ("algorithms/eamsgd.py", "return EASGD(self.alpha).variables", "return EASGD(self.alpha * self.delta).variables"),
    ("algorithms/eamsgd.py", "Gradient(w.y), Exchange(w.x) if w.due", "Gradient(w.y), Exchange(w.y) if w.due"),
    ("algorithms/downpour.py", "g = yield Gradient(w.x if pulled is None else pulled)", "g = yield Gradient(w.x)"),
    ("algorithms/downpour.py", "w.v.zero_()  # c)", "pass"),
    ("algorithms/downpour.py", "w.x.copy_(pulled)  # b)", "pass"),
    ("algorithms/downpour.py", "w.x.sub_(g, alpha=w.eta)", "w.x.sub_(g, alpha=w.schedule(w.t + 1))"),
    ("algorithms/downpour.py", "w.v.sub_(g, alpha=w.eta)", "w.v.sub_(g, alpha=w.schedule(w.t + 1))"),
    (
        "algorithms/downpour.py",
        "        center.x.add_(m, alpha=n)  # a)\n        reply.copy_(center.x)",
        "        reply.copy_(center.x)\n        center.x.add_(m, alpha=n)",
    ),
    ("algorithms/downpour.py", "center.x.add_(m, alpha=n)", "center.x.add_(m, alpha=n / 2)"),
    ("algorithms/mdownpour.py", "w.m.copy_(g).mul_(w.eta)", "w.m.copy_(g).mul_(w.schedule(w.t + 1))"),
    ("algorithms/mdownpour.py", "center.x.add_(center.v, alpha=self.delta)", "center.x.add_(center.v)"),
    (
        "algorithms/mdownpour.py",
        "center.v.mul_(self.delta).sub_(m, alpha=n)",
        "center.v.sub_(m, alpha=n).mul_(self.delta)",
    ),
    ("algorithms/mdownpour.py", "if self.tau != 1:", "if self.tau < 1:"),
    # local steps, beside torch's optimizers
    ("algorithms/local/plain.py", "w.x.sub_(g, alpha=w.eta)", "w.x.sub_(g, alpha=w.schedule(w.t + 1))"),
    ("algorithms/local/momentum.py", "w.x.sub_(w.v, alpha=w.eta)", "w.x.sub_(w.v, alpha=w.schedule(w.t + 1))"),
    ("algorithms/local/nesterov.py", "w.y.copy_(w.x).add_(w.v, alpha=self.delta)", "w.x"),
    ("algorithms/local/adamw.py", "t = w.t + 1", "t = w.t + 2"),
    ("algorithms/local/adamw.py", "1 - w.eta * self.weight_decay", "1 - self.weight_decay"),
    ("algorithms/local/adamw.py", "(1 - self.beta2**t) ** 0.5", "1 - self.beta2**t"),
    ("algorithms/local/rmsprop.py", "value=1 - self.rho", "value=self.rho"),
    ("algorithms/local/adagrad.py", "w.s.addcmul_(g, g)", "w.s.copy_(g * g)"),
    ("algorithms/msgd.py", "w.y.copy_(w.x).add_(w.v, alpha=self.delta)", "w.y.copy_(w.x)"),
    (
        "algorithms/msgd.py",
        "w.v.mul_(self.delta).sub_(g, alpha=w.eta)",
        "w.v.mul_(self.delta).sub_(g, alpha=w.schedule(w.t + 1))",
    ),
    (
        "algorithms/gauss_seidel_easgd.py",
        "        center.x.lerp_(m, n * self.alpha)\n        reply.copy_(center.x)",
        "        reply.copy_(center.x)\n        center.x.lerp_(m, n * self.alpha)",
    ),
    ("algorithms/pull_then_step.py", "w.x.copy_(w.y).sub_(g, alpha=w.eta)", "w.x.sub_(g, alpha=w.eta)"),
    (
        "algorithms/pull_then_step.py",
        "w.x.copy_(w.y).sub_(g, alpha=w.eta)",
        "w.x.copy_(w.y).sub_(g, alpha=w.schedule(w.t + 1))",
    ),
    ("algorithms/pull_then_step.py", "n * self.beta / self.workers", "n * self.alpha"),
    ("algorithms/allreduce.py", "w.m.copy_(g).mul_(w.eta)", "w.m.copy_(g).mul_(w.schedule(w.t + 1))"),
    ("algorithms/allreduce.py", "center.x.sub_(m).sub_(center.v, alpha=self.delta)", "center.x.sub_(center.v)"),
    ("algorithms/model_averaging.py", "return Exchange(w.x)", "return None  # type: ignore[return-value]"),
    ("algorithms/diloco.py", "center.u.mul_(self.mu).add_(d)", "center.u.add_(d).mul_(self.mu)"),
    ("algorithms/diloco.py", "center.x.sub_(d, alpha=self.nu)", "center.x.sub_(d)"),
    ("algorithms/streaming_diloco.py", "mul_(1 - self.mix)", "mul_(self.mix)"),
    ("algorithms/streaming_diloco.py", "Exchange(w.x) if w.due and w.t else", "Exchange(w.x) if w.due else"),
    ("algorithms/async_diloco.py", "(center.t + 1) % every == 0", "center.t % every == 0"),
    ("algorithms/async_diloco.py", "center.s.zero_()", "pass"),
    ("algorithms/async_diloco.py", "            w.d.zero_()\n", "            pass\n"),
    ("algorithms/base.py", "self.local.at(w if x is None else w.at(x))", "self.local.at(w)"),
    ("algorithms/sync_easgd.py", "[CENTER].synchronous()}", "[CENTER]}"),
    ("algorithms/sync_eamsgd.py", "[CENTER].synchronous()}", "[CENTER]}"),
    ("algorithms/pull_then_step.py", 'gathers = "round"', 'gathers = "each"'),
    ("algorithms/base.py", "staleness = clock - 1 - self.clock", "staleness = clock - self.clock"),
    ("algorithms/base.py", "        self.exchanges += 1\n", "        self.exchanges = served\n"),
    (
        "algorithms/base.py",
        "return [(size - entries, receive), (size, rule)]",
        "return [(size - entries, rule), (size, rule)]",
    ),
    ("algorithms/base.py", "return (self.t - self.phase) % self.tau == 0", "return (self.t + 1) % self.tau == 0"),
    ("algorithms/base.py", "return self.schedule(self.t)", "return self.schedule(self.t + 1)"),
    ("algorithms/base.py", "if not 0 <= alpha <= 1:", "if not 0 <= alpha <= 2:"),
    ("algorithms/base.py", "if not 0 <= alpha <= 1:", "if not alpha <= 1:"),
    ("algorithms/base.py", "if not variables and workers != 1:", "if not variables and workers < 1:"),
    ("algorithms/wire.py", "u.add_(part / ulp).floor_()", "u.mul_(0).add_(part / ulp).round_()"),
    ("algorithms/wire.py", "drawn = _ALL if way and self.rounds[place] else worker", "drawn = worker"),
    ("algorithms/wire.py", "+ place) * 2 + way)", "+ place) * 2)"),
    ("algorithms/wire.py", "clamp_(min=2.0**self.least)", "clamp_(min=2.0**-40)"),
    ("algorithms/wire.py", "(needed > below)", "(needed >= below)"),
    ("algorithms/wire.py", "return self.owners[place] == worker", "return False"),
    ("algorithms/wire.py", "return 2 * size if self.bits", "return 4 * size if self.bits"),
    ("algorithms/statistics.py", "center.x.lerp_(m, n / self.workers)", "center.x.lerp_(m, 1 / self.workers)"),
    ("algorithms/statistics.py", "reply.copy_(m)  # so that", "reply.copy_(center.x)  # so that"),
    ("algorithms/statistics.py", "if v is not w.x and v is not reply:", "if v is not w.x:"),
    ("algorithms/statistics.py", "moved = asked.at[d:] - given[d:]", "moved = asked.at[d:] + given[d:]"),
    ("algorithms/statistics.py", "v = w.x.clone()", "v = w.x"),
    # averages
    ("algorithms/average.py", "1.0 / (max(t - self.start, 0) + 1)", "1.0 / max(t - self.start, 1)"),
    ("algorithms/average.py", "1.0 / (max(t - self.start, 0) + 1)", "1.0 / (max(t - self.start, 0) + 2)"),
    (
        "algorithms/average.py",
        "return self.rate if t > self.start else 1.0",
        "return self.rate if t >= self.start else 1.0",
    ),
    ("algorithms/average.py", "rate: float = 0.001", "rate: float = 0.01"),
    ("algorithms/average.py", "if not 0 < self.rate <= 1:", "if not 0 <= self.rate <= 1:"),
    ("algorithms/average.py", "if start < 0:", "if start < -1:"),
    # learning rates
    ("algorithms/schedule.py", "(1 + self.gamma * t) ** 0.5", "(1 + self.gamma * t)"),
    ("algorithms/schedule.py", "bisect_right(self.milestones, t)", "bisect_right(self.milestones, t - 1)"),
    ("algorithms/schedule.py", "factor: float | list[float] = 0.1", "factor: float | list[float] = 0.2"),
    ("algorithms/schedule.py", "math.prod(self.factor[:reached])", "math.prod(self.factor[: reached + 1])"),
    ("algorithms/schedule.py", "if len(factors) != len(self.milestones):", "if len(factors) < len(self.milestones):"),
    ("algorithms/schedule.py", "any(b <= a for a, b", "any(b < a for a, b"),
    ("algorithms/schedule.py", "m < 1 for m in self.milestones", "m < 0 for m in self.milestones"),
    ("algorithms/schedule.py", "if not all(factor > 0 for", "if not all(factor >= 0 for"),
    (
        "algorithms/schedule.py",
        "max(t - self.warmup, 0) / (self.steps - self.warmup)",
        "max(t - self.warmup, 0) / self.steps",
    ),
    ("algorithms/schedule.py", "max(t - self.warmup, 0)", "max(t, 0)"),
    ("algorithms/schedule.py", "(self.steps - self.warmup), 1.0)", "(self.steps - self.warmup), 2.0)"),
    ("algorithms/schedule.py", "final: float = 0.0", "final: float = 0.01"),
    ("algorithms/schedule.py", "if not 0 <= self.final <= 1:", "if not 0 <= self.final:"),
    ("algorithms/schedule.py", "min((t + 1) / (self.warmup + 1), 1.0)", "min(t / (self.warmup + 1), 1.0)"),
    ("algorithms/schedule.py", "min((t + 1) / (self.warmup + 1), 1.0)", "min((t + 1) / (self.warmup + 2), 1.0)"),
    # the center
    ("training/center.py", "min(at + block, end)", "min(at + block - 1, end)"),
    ("training/center.py", "rule(block, message, reply, 1)", "rule(block, message, reply, 2)"),
    ("training/center.py", "self._average(clock + 1)", "self._average(clock)"),
    ("training/center.py", "mean.div_(n)", "mean.div_(n + 1)"),
    ("training/center.py", "rule(block, mean, reply, n)", "rule(block, mean, reply, 1)"),
    ("training/center.py", "other.copy_(reply)", "pass"),
    (
        "training/center.py",
        "            rule(block, mean, reply, n)\n            if weight:\n"
        "                block.average.lerp_(block.x, weight)",
        "            rule(block, mean, reply, n)",
    ),
    ("training/center.py", "begin = end", "begin = 0"),
    # copies of samples
    ("problems/replicas.py", ".mul_(self.dither)", ".mul_(self.dither**2)"),
    ("problems/replicas.py", "t.repeat(self.count, *[1]", "t[:1].repeat(self.count * len(t), *[1]"),
    ("problems/replicas.py", "torch.randn_like(t)", "torch.randn_like(t[:1]).expand_as(t).clone()"),
    # flat vectors
    ("problems/flat.py", "if p.requires_grad]", "]"),
    ("problems/flat.py", "if address == self._bound:", "if self._bound:"),
    ("problems/flat.py", "weakref.finalize(vector, self._views.pop, address, None).atexit = False", "pass"),
    ("problems/flat.py", "value = tensor if slot is None else values[slot]", "value = tensor"),
    ("problems/flat.py", 'not name.endswith("num_batches_tracked")', "True"),
    ("problems/flat.py", "if not bool(torch.isfinite(vector).all()):", "if False:"),
    ("problems/flat.py", "if state[name].shape != tensor.shape:", "if state[name].numel() != tensor.numel():"),
    (
        "problems/flat.py",
        "(tensor if slot is None else values[slot]).copy_(state[name])",
        "values[slot or 0].copy_(state[name])",
    ),
    ("problems/flat.py", 'value.detach().to("cpu", copy=True,', 'value.detach().to("cpu",'),
    # fragments
    ("algorithms/fragments.py", "fragment * w.tau // fragments", "0"),
    ("algorithms/fragments.py", "key=lambda step: not step.w.due", "key=lambda step: step.w.due"),
    ("algorithms/fragments.py", "if len(owners) == 1 and", "if"),
    ("algorithms/fragments.py", "begin=max(p.begin, begin) - begin", "begin=p.begin"),
    ("algorithms/fragments.py", "Exchange(None, ask.to, self._fragment)", "Exchange(None, ask.to)"),
    (
        "training/center.py",
        "self._update(lent[: blocks.stop], max(first, blocks.start)",
        "self._update(lent, max(first, blocks.start)",
    ),
    (
        "training/center.py",
        "lent[: blocks.stop], max(first, blocks.start), self.clocks[f])",
        "lent[: blocks.stop], blocks.start, self.clocks[f])",
    ),
    ("training/center.py", "reply[entries].copy_(answered[entries])", "reply.copy_(answered)"),
    # what a killed master leaves to the next
    ("training/ledger.py", "first, clocks = first + fragment, 1", "pass"),
    ("training/ledger.py", "0 if pulled else clocks, 0  # a pull", "clocks, 0  # a pull"),
    ("training/ledger.py", "entry_of(worker, to)", "worker"),
    ("training/ledger.py", "return (t << _VARIABLES) + variable", "return t"),
    ("training/ledger.py", "self._vector[i], n[_TO], n[_FRAGMENT])", "self._vector[i], n[_TO])"),
    ("training/ledger.py", "return self._key[request.worker] >> _VARIABLES >= request.t", "return False"),
    ("training/ledger.py", "self._others[i] + 1, i + 1", "self._others[i] + 1, 0"),
    ("training/serving.py", "self._couriers.again(to, courier, self.ledger.others(place))", "pass"),
    ("training/serving.py", "couriers.again(variable, -1, ledger.others(places[variable]))", "pass"),
    ("training/couriers.py", "self._replies[at % EXCHANGES]", "self._replies[0]"),
    ("training/ledger.py", "self._numbers[_AT] = 2 * block + 1", "pass"),
    ("training/ledger.py", "            kept.copy_(v)", "            pass"),
    ("training/ledger.py", "self._next[i] - 1 if i in changing else", ""),
    ("training/ledger.py", "if self._numbers[_AT] % 2:", "if False:"),
    ("training/ledger.py", "return members, n[_AT] // 2", "return members, 0"),
    ("training/ledger.py", "if self._key[request.worker] != _key(request.t, request.to):", "if True:"),
    ("training/serving.py", "self.centers[members[0].to].take_back(block)", "pass"),
    ("training/master.py", '            self._keep("last")', "            pass"),
    ("training/master.py", "self._give_back(list(self._closing) if self._stopped else [])", "pass"),
    ("training/master.py", "if self._away or not self._closing or", "if not self._closing or"),
    ("launcher/virtual/master.py", "self.closing.discard(request.worker)", "pass"),
    ("training/serving.py", "            self.ledger.end()", "            pass"),
    # the transports
    (
        "transport/relay.py",
        "self._end.reply(request, clock, served, Mark(mark), t)",
        "self._end.reply(request, clock, served, Mark(mark))",
    ),
    ("transport/relay.py", "if request.kind is Kind.LOST:  # it may", "if False:  # it may"),
    ("launcher/hosts/gate.py", "self.unfit.add(party)", "pass"),
    ("launcher/hosts/hosted_master.py", "self._lives[worker] <= self._ended[worker]", "True"),
    ("launcher/hosts/hosted_master.py", "life <= self._ended[worker] or", ""),
    ("launcher/hosts/words.py", "needed <= value.keys() <= keys.keys()", "needed <= value.keys()"),
    ("launcher/hosts/words.py", "needed <= layout.keys() <= wanted", "needed <= layout.keys()"),
    ("launcher/hosts/words.py", "*(OF_OWNER if self.alone else ())", "*OF_OWNER"),
    ("launcher/hosts/words.py", "and -_MOST <= value <= _MOST", ""),
    ("launcher/hosts/words.py", "and number not in _STOPPING", ""),
    ("launcher/hosts/stand_in.py", "self._start.words.check(message, enclosed)", "pass"),
    ("launcher/hosts/stand_in.py", 'if end.get("broken"):', "if False:"),
    ("launcher/hosts/far_children.py", 'elif message["kind"] == "unfit":', 'elif message["kind"] == "never":'),
    ("launcher/hosts/gate.py", "(host is not last, before not in", "(before not in"),
    ("launcher/hosts/door.py", "if self._closed.wait(_AGAIN_SECONDS):", "if True:"),
    ("launcher/hosts/far_sessions.py", "        self._end.lose()\n", ""),
    ("launcher/hosts/hosted_master.py", "if life > 1 or self._sessions.get(worker, self) is not None:", "if False:"),
    ("transport/relay.py", "ended = request.kind in (Kind.CLOSE, Kind.LOST)", "ended = request.kind is Kind.CLOSE"),
    ("transport/relay.py", "self._free.set()  # before it is sent: the next request is the answer to it", "pass"),
    (
        "transport/connection.py",
        'if not hmac.compare_digest(mac, _proof(secret, b"caller", ours, theirs)):',
        "if False:",
    ),
    (
        "transport/connection.py",
        'if not hmac.compare_digest(mac, _proof(secret, b"called", theirs, ours)):',
        "if False:",
    ),
    ("transport/connection.py", "or self._left > self.most:", "or False:"),
    ("transport/turn.py", "fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass"),
    ("launcher/hosts/gate.py", "if host.running.get(party) == ticket), None)", "if party in host.running), None)"),
    ("launcher/hosts/gate.py", "0 if self.address is None else self.masters", "self.masters"),
    ("launcher/hosts/far_children.py", "elif isinstance(party, int) and not all_there:", "elif False:"),
    ("launcher/hosts/far_children.py", "for place in sorted(self._addresses)", "for place in self._addresses"),
    ("transport/collective.py", "if self._broken or group != self._group:", "if group != self._group:"),
    ("transport/collective.py", "begin(self._center)\n        super()", "begin({})\n        super()"),
    ("transport/collective.py", "begin(self._center)\n            self", "begin({})\n            self"),
    ("transport/collective.py", 'return None, self._memory[request.worker]["reply"]', "return None, self._reply"),
    ("transport/relay.py", "self._sums[vector]] if summed", "self._sums[0]] if summed"),
    ("transport/collective.py", "group.size, clock)", "group.size + 1, clock)"),
    (
        "transport/shared.py",
        "while len(data := self.received()) < REPLY.size:",
        "while len(data := self.received()) < 0:",
    ),
    ("transport/shared.py", "served, t, mark = served + by_another, max(t, at), max(mark, how)", "pass"),
    ("algorithms/slices.py", "max(0, self.entries.stop - max(begin, self.entries.start))", "statistics"),
    ("algorithms/slices.py", "/ unit) * unit for j", ") for j"),
    ("launcher/processes/masters.py", "if rank < latest:", "if False:"),
    ("launcher/processes/masters.py", "if not all(self._said):", "if not any(self._said):"),
    ("launcher/processes/masters.py", "entry_of(worker, place) for", "worker for"),
    ("launcher/processes/masters.py", 'self._drop(place, "checkpoint")', "pass"),
    ("transport/simulated.py", "return self._shares[request.to]", "return 1.0"),
    ("transport/shared_link.py", "self._given += self._capacity / self._weights *", "self._given += self._capacity *"),
    ("transport/shared_link.py", "max(now, self._free) + nbytes", "now + nbytes"),
    ("launcher/supervisor/beginning.py", "or ready < self._least or", "or"),
    ("launcher/supervisor/beginning.py", "or not members.homeless.issuperset(late)", ""),
    ("launcher/supervisor/losses.py", "members.homeless.intersection(members.away)", "members.away"),
    ("training/mean_clock.py", "max(self.step, self._sum / self.workers)", "self._sum / self.workers"),
    (
        "training/mean_clock.py",
        "self._sum - t, self.workers - 1\n        self._note()",
        "self._sum - t, self.workers - 1",
    ),
    ("training/returning.py", "self._mean.advance(t - self.clocks[worker])", "pass"),
    ("training/returning.py", "int(progress.step) if request.t == NEW else t", "t"),
    ("training/returning.py", "if request.t == NEW else t", "if request.t > 0 else t"),
    ("launcher/journal/links.py", "before[link.host] = (second, link.up[0]", "before[link.host] = (second, 0"),
    ("launcher/hosts/probe.py", "if not 0 <= asked <= MOST:", "if not 0 <= asked:"),
    ("transport/connection.py", "shutdown(socket.SHUT_WR)", "shutdown(socket.SHUT_RDWR)"),
    ("transport/connection.py", "gone.poll(1000 *", "gone.poll(0 *"),
    ("transport/simulated.py", "return None if awaited else event._replace", "return event._replace"),
    ("transport/shared.py", "if mark == Mark.WITHDRAWN:", "if mark == Mark.CHECKPOINT:"),
    (
        "transport/shared.py",
        "memory[self._names[request.worker][request.vector]]",
        "memory[self._names[request.worker][0]]",
    ),
    ("transport/shared.py", "if request.kind in (Kind.CLOSE, Kind.LOST):", "if request.kind is Kind.LOST:"),
    ("transport/shared.py", '            data = b""\n', "            raise\n"),
    ("transport/shared.py", "self._send(Kind.CHECKPOINT, t, 0)", "self._send(Kind.CLOSE, t, 0)"),
    ("transport/shared.py", "self._send(Kind.CLOSE, t, 0)", "self._send(Kind.CLOSE, 0, 0)"),
    ("transport/staging.py", "self._shared[name].copy_(self.vectors[name], non_blocking=True)", "pass"),
    ("transport/staging.py", 'self.vectors["reply"].copy_(self._shared["reply"], non_blocking=True)', "pass"),
    ("transport/staging.py", "v.to(device, copy=True)", "v.to(device)"),
    ("transport/on_device.py", "self.vectors[name].copy_(v)", "pass"),
    (
        "transport/shared.py",
        "return Reply(self._reply, clock, served, Mark(mark), t)",
        "return Reply(self._reply, clock, clock + 1, Mark(mark), t)",
    ),
    (
        "transport/shared.py",
        "self._send(kind, t, index, self._variables[to], fragment)",
        "self._send(kind, 0, index, self._variables[to], fragment)",
    ),
    (
        "transport/shared.py",
        "self._untold = (kind, t, index, self._variables[to], fragment)",
        "self._untold = (kind, 0, index, self._variables[to], fragment)",
    ),
    (
        "transport/simulated.py",
        "return self.latency[0] + (share * self.nbytes / self.bandwidth[0]",
        "return self.latency[1] + (share * self.nbytes / self.bandwidth[0]",
    ),
    (
        "transport/simulated.py",
        "return self.latency[1] + (share * self.nbytes / self.bandwidth[1]",
        "return self.latency[1] + (share * self.nbytes / self.bandwidth[0]",
    ),
    (
        "transport/simulated.py",
        "self._events.now + overhead + way, ARRIVE",
        "self._events.now + way, ARRIVE",
    ),
    (
        "transport/simulated.py",
        "way = network.down(self.share(request)) if",
        "way = network.up(self.share(request)) if",
    ),
    ("transport/simulated.py", "        self._numbers += 1\n", "        self._numbers -= 1\n"),
    (
        "transport/simulated.py",
        "self._posted = Request(self._number, kind, t, index, self._wire.place(to) + self._shard, fragment)",
        "self._posted = Request(self._number, kind, 0, index, self._wire.place(to) + self._shard, fragment)",
    ),
    ("transport/simulated.py", "if self._reply.mark is Mark.WITHDRAWN:", "if self._reply.mark is Mark.CHECKPOINT:"),
    ("transport/simulated.py", "self._wire.to_all(Request(self._number, Kind.LOST, -1, 0))", "pass"),
    ("transport/simulated.py", "self.vectors[self._names[request.vector]]", "self.vectors[self._names[0]]"),
    ("transport/simulated.py", "heapq.heapify(self._heap)", "self._heap.reverse()"),
    ("launcher/virtual/master.py", "self._service * len(members)", "self._service"),
    (
        "launcher/virtual/master.py",
        "self.longest = max(self.longest, *waited)",
        "self.longest = max(*waited, 0.0)",
    ),
    ("launcher/virtual/master.py", "self.busy += service", "self.busy += service / len(waited)"),
    ("launcher/virtual/master.py", "self._all.exchanges += len(members)", "self._all.exchanges += 1"),
    ("launcher/virtual/master.py", "self.center.clock - own - self._told", "self.center.clock - self._told"),
    ("launcher/virtual/master.py", "if seen >= share * total:", "if seen > share * total:"),
    (
        "training/gathering.py",
        "        members = sorted(self._arrived)\n",
        "        members = sorted(self._arrived, reverse=True)\n",
    ),
    ("training/gathering.py", "not self._arrived or not self._arrived >= self._live", "not self._arrived"),
    (
        "training/gathering.py",
        "        for worker in self._arrived:\n",
        "        for worker in sorted(self._arrived):\n",
    ),
    (
        "training/gathering.py",
        "not self._in_rounds or worker <= members[-1]",
        "not self._in_rounds or worker < members[-1]",
    ),
    # torch's own loops
    ("training/data_parallel.py", "(t - self.after) % self.tau == 0", "t % self.tau == 0"),
    ("training/data_parallel.py", "state.iter = t - 1 if", "state.iter = t if"),
    ("training/data_parallel.py", "if t and not self.meets(t - 1):", "if t and not self.meets(t):"),
    ("training/peers.py", 'group["lr"] = w.eta', 'group["lr"] = w.schedule(0)'),
    ("problems/net.py", "begins.copy_(x)", "pass"),
    # the analysis
    ("theory/linear.py", "covariance = a @ covariance @ _transposed(a) + q", "covariance = a @ covariance @ a + q"),
    ("theory/linear.py", 'if bit == "1":', 'if bit == "0":'),
    ("theory/moments.py", "eta_h + alpha + beta, eta_h * beta", "eta_h + alpha, eta_h * beta"),
    ("theory/moments.py", "(2 - eta_h) * (2 - beta) - 2 * beta /", "(2 - eta_h) * (2 - beta) - beta /"),
    ("theory/moments.py", "((2 - eta_h) + (2 - beta) > alpha)", "((2 - eta_h) + (2 - beta) > -9)"),
    ("theory/moments.py", "u = eta * h + beta / p + beta - c2", "u = eta * h + beta - c2"),
    (
        "theory/moments.py",
        "a = _matrix([[1 - alpha - eta * h, alpha], [beta, 1 - beta]])",
        "a = _matrix([[1 - alpha - eta * h, alpha], [alpha, 1 - beta]])",
    ),
    ("theory/moments.py", "(2 - beta - eta_h + both)", "(2 - beta - eta_h)"),
    ("theory/moments.py", "[beta, 1 - beta, one]])", "[zero, one, one]])"),
    ("theory/moments.py", "mean[..., 2] / (t + 1)", "mean[..., 2] / max(t, 1)"),
    ("theory/roundrobin.py", "m[..., i, i] = 1 - eta - alpha", "m[..., i, i] = 1 - eta"),
    ("theory/roundrobin.py", "(1 - eta) / (1 + eta * rho)", "(1 - eta)"),
    ("theory/roundrobin.py", "return f3 @ f2 @ f1", "return f3 @ f1 @ f2"),
    ("theory/roundrobin.py", "(4 - 2 * eta) / (4 - eta)", "(4 - 2 * eta) / 4"),
    ("theory/roundrobin.py", "product = m @ product", "product = product @ m"),
    ("theory/doublewell.py", "np.sqrt(1 - rho)", "1 - rho"),
    ("theory/doublewell.py", "1 - 4 * rho + 6 * rho**2", "1 - 4 * rho + 5 * rho**2"),
    (
        "theory/family.py",
        "= eta_h + beta - eta_h * beta + self.slope(eta_h, beta) * alpha",
        "= eta_h + beta + self.slope(eta_h, beta) * alpha",
    ),
    ("theory/family.py", "mean = self.alpha(2 * c - c * c, eta_h, beta)", "mean = self.alpha(2 * c, eta_h, beta)"),
    (
        "theory/family.py",
        "self.alpha(2 - np.sqrt(np.multiply(eta_h, beta)), eta_h, beta)",
        "self.alpha(1.9 - np.sqrt(np.multiply(eta_h, beta)), eta_h, beta)",
    ),
    ("theory/family.py", "c2 * (2 - u) / (u * s)", "c2 * (2 - u) / (u + s)"),
    ("theory/family.py", "lambda eta_h, beta: 1 - beta + 0 * eta_h", "lambda eta_h, beta: 1 + 0 * eta_h + 0 * beta"),
    ("theory/family.py", "lambda eta_h, alpha: (1 - eta_h) * (1 - alpha)", "lambda eta_h, alpha: 1 - eta_h - alpha"),
    ("theory/family.py", "np.sqrt(np.maximum(1 - u, 0))", "np.maximum(1 - u, 0)"),
    ("theory/simulate.py", "mul_(-sigma).add_(x, alpha=h)", "mul_(-sigma).add_(x)"),
    ("theory/simulate.py", "(2 / (self.runs - 1)) ** 0.5", "(1 / (self.runs - 1)) ** 0.5"),
    ("theory/simulate.py", "return runs if runs >= min(asked, FEWEST_RUNS) else 0", "return runs"),
]


def beside(file: str) -> tuple[str, ...]:
    """The tests beside a file, as pytest's arguments."""
    return next(tests for beginning, tests in TESTS.items() if file.startswith(beginning))


def copied(directory: Path) -> Path:
    """What the tests need, without compiled files, of which a stale one would hide a mutant."""
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, directory / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, directory / part)
    return directory


def tried(copy: Path, tests: tuple[str, ...], log: Path, seconds: float = SECONDS) -> str:
    """Runs tests on the copy in a process of its own, forked from this one, which has imported what is large and not
    what is broken.

    SURVIVED: they pass; killed: they do not; endless: they have not ended within so many seconds.
    """
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.chdir(copy)
        sys.path.insert(0, str(copy))
        os.environ["PYTHONPATH"] = str(copy)
        import pytest

        with log.open("w") as out, redirect_stdout(out), redirect_stderr(out):
            status = pytest.main(
                ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-p", "no:randomly", "--tb=line", *tests]
            )
        os._exit(int(status))
    deadline = time.monotonic() + seconds
    status = None
    while status is None and time.monotonic() < deadline:
        ended, code = os.waitpid(pid, os.WNOHANG)
        status = code if ended else None
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # itself, and what it has left
    if status is None:
        os.waitpid(pid, 0)
        return "endless"
    return "killed" if status else "SURVIVED"


def main(words: list[str]) -> int:
    chosen = [m for m in MUTANTS if not words or any(word in part for word in words for part in m[:2])]
    unfit = [(file, old) for file, old, _ in chosen if (ROOT / "easgd_cli" / file).read_text().count(old) != 1]
    for file, old in unfit:
        print(f"does not occur once in {file}: {old}")
    if unfit:
        return 2
    for library in ("hydra", "pytest", "tensorboard.compat.proto.summary_pb2", "torch._dynamo", "torch.testing"):
        importlib.import_module(library)  # what takes seconds, once for all
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        copy, log = copied(Path(temporary)), Path(temporary) / "log"
        limits: dict[tuple[str, ...], float] = {}
        for tests in dict.fromkeys(beside(file) for file, _, _ in chosen):
            began = time.monotonic()
            if tried(copy, tests, log) != "SURVIVED":
                print(f"fails without a mutant: {' '.join(tests)}\n{log.read_text()}")
                return 2
            limits[tests] = 60 + 10 * (time.monotonic() - began)
    several = max(1, min(os.cpu_count() or 1, 4, len(chosen)))
    sharing = []
    for part in range(several):
        if (pid := os.fork()) == 0:
            os._exit(try_all(chosen[part::several], limits))
        sharing.append(pid)
    survived = sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in sharing)
    print(f"{len(chosen) - survived} of {len(chosen)} killed")
    return 1 if survived else 0


def try_all(mutants: list[tuple[str, str, str]], limits: dict[tuple[str, ...], float]) -> int:
    """Says of each whether the tests see it. Returns how many they do not."""
    survived = 0
    with tempfile.TemporaryDirectory() as temporary:
        copy = copied(Path(temporary))
        for file, old, new in mutants:
            path = copy / "easgd_cli" / file
            whole = path.read_text()
            path.write_text(whole.replace(old, new))
            found = tried(copy, beside(file), copy / "log", limits[beside(file)])
            path.write_text(whole)
            shown = "  ->  ".join(" / ".join(line.strip() for line in lines.splitlines()) for lines in (old, new))
            print(f"{found:8}  {file}: {shown}", flush=True)
            survived += found == "SURVIVED"
    return survived


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
