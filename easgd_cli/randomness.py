"""Randomness as a function instead of a state.

Every draw of a run comes from a generator seeded with `key(seed, stream, worker, n)`, so it depends only on its
purpose. Resuming, replaying and simulating need no generator states: the clock says which numbers come next.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

# Streams, one for each purpose of draws. Two streams have independent numbers; a new stream takes the next free value.
PERMUTATION = 1  # order of the training images; n counts passes over them
AUGMENTATION = 2  # crops, shifts and flips of a batch; n is the worker's clock
DROPOUT = 3  # all draws of the model; n is the worker's clock
INIT = 4  # initial parameters
SUBSET = 5  # training images on which the training loss is measured
HELD_OUT = 6  # training images set aside for choosing settings
RULE = 7  # a method's own draws; n is the worker's clock
CONTENT = 8  # pixels of synthetic images
NOISE = 9  # noise of the gradients of known functions; n is the worker's clock
COMPUTING = 10  # seconds of a step on the virtual clock; n is the worker's clock
PAUSES = 11  # whether a worker pauses before a step on the virtual clock; n is the worker's clock
MADE_BY_USERS = 12  # all draws of a user's own data set
SAMPLE = 13  # draws of a user's Dataset for one sample; n is the sample's index
TESTED = 14  # samples that a data set without a test set of its own is tested on
FAULTS = 15  # whether a worker suffers a fault; n is the worker's clock
WIRE = 16  # how a vector is rounded on its way; n is the worker's clock, the variable and the way

_64_BITS = 2**64 - 1


def key(seed: int, stream: int, worker: int = 0, n: int = 0) -> int:
    """Returns a seed of 63 bits for a generator, for draw `n` of `worker` from `stream` in the run with this `seed`.

    All bits depend on all arguments. That matters: torch's CPU generator (a Mersenne twister) reads only the lower 32.
    """
    z = _mix(seed)
    for part in (stream, worker, n):
        z = _mix(z ^ part)
    return z >> 1


@contextmanager
def seeded(seed: int, stream: int) -> Iterator[None]:
    """Seeds the global generators of torch (its CPU's), numpy and Python by `seed` and `stream` during the block, and
    restores their states afterwards.

    For code that takes no generator: nets, so that every worker starts from the same parameters (paper p. 6, footnote
    7), and users' data sets, so that a run that goes on sees the same data.
    """
    import numpy  # here, since torch and numpy are slow to load and keys do not need them
    import torch

    before = torch.random.get_rng_state(), numpy.random.get_state(), random.getstate()
    seed_all(key(seed, stream))
    try:
        yield
    finally:
        torch.random.set_rng_state(before[0])
        numpy.random.set_state(before[1])
        random.setstate(before[2])


def seed_all(z: int) -> None:
    """Seeds the global generators of torch (its CPU's), numpy and Python with `z`."""
    import numpy
    import torch

    torch.default_generator.manual_seed(z)
    numpy.random.seed(z % 2**32)
    random.seed(z)


def _mix(z: int) -> int:
    """One step of splitmix64 (Steele, Lea, Flood 2014): a bijection of 64 bits."""
    z = (z + 0x9E3779B97F4A7C15) & _64_BITS
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _64_BITS
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _64_BITS
    return z ^ (z >> 31)


def uniform(seed: int, stream: int, worker: int = 0, n: int = 0) -> float:
    """Returns a number from (0, 1) for the arguments of `key`, where a generator would cost more than the draw."""
    return (key(seed, stream, worker, n) + 0.5) / 2**63
