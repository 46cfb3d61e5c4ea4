"""Addressed randomness: the generator's published answers, and the promises that the rest of the house rests on."""

import numpy as np
import pytest

from twofold.randomness import Key, derive_seed, permutation, permuted, philox, uniforms

# Known answers of Philox4x32-10 from Random123's kat_vectors (Salmon et al. 2011).
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, expected):
    assert tuple(philox(np.array([counter], dtype=np.uint64), key)[0]) == expected


def test_any_subset_of_rows_sees_the_same_numbers():
    whole = uniforms(Key(7, 3), "crop", np.arange(64), 10)
    assert (uniforms(Key(7, 3), "crop", [5, 63, 0], 10) == whole[[5, 63, 0]]).all()
    assert (uniforms(Key(7, 3), "crop", np.arange(64), 3) == whole[:, :3]).all()


def test_every_part_of_the_address_matters():
    base = uniforms(Key(1, 1), "a", np.arange(100), 4)
    others = [
        uniforms(Key(2, 1), "a", np.arange(100), 4),
        uniforms(Key(1 << 33 | 1, 1), "a", np.arange(100), 4),
        uniforms(Key(1, 2), "a", np.arange(100), 4),
        uniforms(Key(1, 1), "b", np.arange(100), 4),
        uniforms(Key(1, 1), "a", np.arange(100, 200), 4),
    ]
    for other in others:
        assert not np.isclose(base, other).any(axis=1).all()
        assert abs(np.corrcoef(base.ravel(), other.ravel())[0, 1]) < 0.2


def test_uniforms_are_uniform():
    draws = uniforms(Key(0, 0), "u", np.arange(5000), 8).ravel()
    assert draws.min() >= 0
    assert draws.max() < 1
    counts, _ = np.histogram(draws, bins=20, range=(0, 1))
    chi2 = ((counts - 2000) ** 2 / 2000).sum()
    assert chi2 < 43.8  # 99.9 % point of chi-squared with 19 degrees of freedom


def test_permutation_is_one_and_changes_with_epoch():
    first, again, second = (permutation(0, "order", epoch, 1000) for epoch in (0, 0, 1))
    assert (np.sort(first) == np.arange(1000)).all()
    assert (first == again).all()
    assert (first != second).mean() > 0.9


def test_bad_addresses_are_refused():
    with pytest.raises(ValueError, match="seed"):
        Key(-1, 0)
    with pytest.raises(ValueError, match="at most 4"):
        derive_seed(0, 1, 2, 3, 4, 5)


def test_derived_seeds_differ_and_fit_a_torch_generator():
    seeds = {derive_seed(0, "step", step) for step in range(1000)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17, 1000, 4097])
def test_entries_of_an_order_that_is_never_made(n):
    whole = permuted(7, "order", 2, n, np.arange(n))
    assert sorted(whole.tolist()) == list(range(n))
    places = np.array([n - 1, 0, n // 2])
    assert permuted(7, "order", 2, n, places).tolist() == whole[places].tolist()
    if n > 100:
        others = [permuted(8, "order", 2, n, np.arange(n)), permuted(7, "order", 3, n, np.arange(n))]
        assert all((other == whole).mean() < 0.01 for other in others)


def test_every_order_is_as_likely():
    # 6 orders of 3: chi square with 5 degrees of freedom, 99.99 % quantile 25.7
    orders = [tuple(permuted(seed, "order", 0, 3, np.arange(3)).tolist()) for seed in range(600)]
    counts = np.array([orders.count(order) for order in set(orders)])
    assert len(counts) == 6
    assert ((counts - 100) ** 2 / 100).sum() < 25.7
