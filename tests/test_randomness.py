"""Addressed randomness: the documented hash, and that grouping changes nothing."""

import numpy as np
import torch

from justimage import randomness


def test_the_hash_is_the_documented_one() -> None:
    """SplitMix64's published first outputs for the state 0, and this project's own vectors."""
    state = np.array([0], dtype=np.uint64)
    increment = np.uint64(0x9E3779B97F4A7C15)
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [int(randomness.mix(state + increment * np.array([i], dtype=np.uint64))[0]) for i in range(3)] == published
    assert randomness.fnv("") == 0xCBF29CE484222325 and randomness.fnv("a") == 0xAF63DC4C8601EC8C
    by_hand = randomness.mix(np.array([7], dtype=np.uint64))
    by_hand = randomness.mix(by_hand ^ np.uint64(randomness.fnv("flip")))
    by_hand = randomness.mix(by_hand ^ np.uint64(12))
    assert randomness.keys(7, "flip", 12)[0] == by_hand[0]
    assert randomness.key(0, "noise", 0) == 5484526415873069508
    assert randomness.keys(1, "order", 2, [0, 1]).tolist() == [11278682329096986234, 11925838973618034214]


def test_an_order_is_a_permutation_and_differs_by_epoch() -> None:
    first, second = randomness.order(0, 0, 1000), randomness.order(0, 1, 1000)
    assert sorted(first) == list(range(1000)) == sorted(second)
    assert (first == second).mean() < 0.05


def test_a_subset_is_of_all_classes_in_whichever_order_these_stand() -> None:
    chosen = randomness.subset(1000, 500)
    assert len(set(chosen)) == 500 and (np.diff(chosen) > 0).all()
    for classes in np.arange(1000) % 100, np.arange(1000) // 10:
        counts = np.bincount(classes[chosen], minlength=100)
        assert counts.min() >= 1 and counts.std() < 2
    assert randomness.subset(7, 7).tolist() == randomness.subset(7, 9).tolist() == list(range(7))


def test_numbers_do_not_depend_on_their_neighbours() -> None:
    whole = randomness.normal(3, "t", range(100))
    assert torch.equal(whole[40:50], randomness.normal(3, "t", range(40, 50)))
    assert not torch.equal(whole, randomness.normal(4, "t", range(100)))
    assert not torch.equal(whole, randomness.normal(3, "drop", range(100)))


def test_noise_does_not_depend_on_the_grouping() -> None:
    whole = randomness.noise(0, 10, 100, (2, 3))
    parts = [randomness.noise(0, start, 20, (2, 3)) for start in range(10, 110, 20)]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(whole[7:8], randomness.noise(0, 17, 1, (2, 3)))


def test_the_numbers_are_distributed_as_they_should() -> None:
    u = randomness.uniform(0, "drop", range(100_000))
    assert u.min() > 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 0.003 and abs((u < 0.1).mean() - 0.1) < 0.003
    n = randomness.normal(0, "t", range(100_000))
    assert abs(n.mean()) < 0.01 and abs(n.std() - 1) < 0.01
    eps = randomness.noise(0, 0, 64, (64, 64))
    assert abs(eps.mean()) < 0.01 and abs(eps.std() - 1) < 0.01
