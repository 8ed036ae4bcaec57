"""Keys of generators are a function that mixes everything into all bits."""

import random

import numpy
import torch

from easgd_cli.randomness import AUGMENTATION, DROPOUT, INIT, PERMUTATION, _mix, key, seeded


def test_one_step_is_splitmix64():
    """The first outputs of the published generator from the seeds 0 and 1234567."""
    assert _mix(0) == 0xE220A8397B1DCDAF
    assert _mix(1234567) == 6457827717110365317


def test_keys_have_63_bits_and_take_any_seed():
    for seed in (0, 1, 2**32, 2**63 - 1):
        assert 0 <= key(seed, INIT) < 2**63
    assert key(3, DROPOUT, 1, 7) == key(3, DROPOUT, 1, 7)


def test_no_two_purposes_share_a_key_even_in_the_bits_that_torch_reads():
    """torch's CPU generator is seeded by the lower 32 bits only."""
    keys = {
        key(seed, stream, worker, n) & 0xFFFFFFFF
        for seed in (0, 1, 2**32, 2**33)
        for stream in (PERMUTATION, AUGMENTATION, DROPOUT)
        for worker in range(16)
        for n in (*range(10), 2**32, 2**40)
    }
    assert len(keys) == 4 * 3 * 16 * 12


def test_arguments_are_not_interchangeable():
    assert len({key(1, 2, 3, 4), key(1, 2, 4, 3), key(2, 1, 3, 4), key(1, 3, 2, 4), key(4, 3, 2, 1)}) == 5


def test_neighbouring_steps_differ_in_half_the_bits():
    flipped = [bin(key(0, DROPOUT, 0, t) ^ key(0, DROPOUT, 0, t + 1)).count("1") for t in range(500)]
    assert abs(sum(flipped) / len(flipped) - 31.5) < 1


def test_a_generator_seeded_so_gives_the_same_numbers_again():
    draws = [torch.rand(4, generator=torch.Generator().manual_seed(key(0, DROPOUT, 1, 5))) for _ in range(2)]
    assert torch.equal(*draws)


def drawn():
    return torch.rand(1).item(), numpy.random.rand(), random.random()


def test_within_a_seed_every_global_generator_begins_anew_and_is_left_alone():
    before = drawn()
    torch.manual_seed(1), numpy.random.seed(1), random.seed(1)
    undisturbed = drawn()
    torch.manual_seed(1), numpy.random.seed(1), random.seed(1)
    found = {}
    for seed, stream in ((5, INIT), (6, INIT), (5, DROPOUT)):
        with seeded(seed, stream):
            found[seed, stream] = drawn()
        with seeded(seed, stream):
            assert drawn() == found[seed, stream]
    assert drawn() == undisturbed
    assert all(len(set(numbers)) == 4 for numbers in zip(before, *found.values(), strict=True))
