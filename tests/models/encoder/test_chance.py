import numpy as np
import torch

from models.encoder.chance import _mix, _mix_int, chance_of, key_of, seed_dropout, uniform


def test_the_tensor_and_the_integer_mixer_agree():
    for value in (0, 1, 12345, (1 << 63) - 1, (1 << 64) - 1):
        signed = value - (1 << 64) if value >= 1 << 63 else value
        assert int(_mix(torch.tensor([signed]))) % (1 << 64) == _mix_int(value)


def test_numbers_depend_on_every_key_and_on_nothing_else():
    ids, epochs = torch.arange(4), torch.zeros(4, dtype=torch.int64)
    base = chance_of(1, 2, 3, ids, epochs).uniform(8, 0)
    assert torch.equal(base, chance_of(1, 2, 3, ids, epochs).uniform(8, 0))
    others = [chance_of(9, 2, 3, ids, epochs), chance_of(1, 9, 3, ids, epochs), chance_of(1, 2, 9, ids, epochs),
              chance_of(1, 2, 3, ids + 10, epochs), chance_of(1, 2, 3, ids, epochs + 1)]
    for other in others:
        assert not (other.uniform(8, 0) == base).any()
    assert not (chance_of(1, 2, 3, ids, epochs).uniform(8, 1) == base).any()


def test_a_sample_draws_the_same_alone_as_in_a_batch():
    ids, epochs = torch.arange(100), torch.zeros(100, dtype=torch.int64)
    together = chance_of(0, 5, 0, ids, epochs).uniform(16, 3)
    alone = chance_of(0, 5, 0, ids[42:43], epochs[42:43]).uniform(16, 3)
    assert torch.equal(together[42], alone[0])


def test_what_ranks_share_does_not_depend_on_the_micro_batch():
    ids, epochs = torch.arange(2), torch.zeros(2, dtype=torch.int64)
    assert chance_of(0, 7, 0, ids, epochs).shared_uniform(1) == chance_of(0, 7, 3, ids + 5, epochs).shared_uniform(1)


def test_numbers_are_uniform_and_uncorrelated():
    draws = uniform(torch.arange(2000), 50).numpy()
    assert draws.min() >= 0 and draws.max() < 1
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    expected = draws.size / 20
    assert ((counts - expected) ** 2 / expected).sum() < 44  # chi-square, 19 degrees of freedom, p = 0.001
    neighbours = np.corrcoef(draws[:, 0], draws[:, 1])[0, 1], np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]
    assert max(abs(c) for c in neighbours) < 0.08


def test_keys_do_not_collide_for_swapped_parts():
    keys = {key_of(a, b) for a in range(50) for b in range(50)}
    assert len(keys) == 2500


def test_branches_are_chances_of_their_own_and_functions_of_their_number() -> None:
    ids = torch.arange(500)
    chance = chance_of(0, 3, 0, ids, 0 * ids)
    draws = [chance.uniform(16, 11), chance.branch(1).uniform(16, 11), chance.branch(2).uniform(16, 11)]
    for i, one in enumerate(draws):
        for other in draws[i + 1:]:
            assert abs(float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])) < 0.05
    assert torch.equal(chance.branch(1).uniform(16, 11), draws[1])
    shared = {chance.shared_uniform(1), chance.branch(1).shared_uniform(1), chance.branch(2).shared_uniform(1)}
    assert len(shared) == 3


def test_dropout_draws_the_same_bits_as_after_torchs_own_seed():
    ones = torch.ones(1000)
    for key in (key_of(3, 1), key_of(3, 2), -5, (1 << 63) - 1):
        torch.manual_seed(key & ((1 << 63) - 1))
        expected = torch.nn.functional.dropout(ones, 0.5), torch.rand(7)
        seed_dropout(key, torch.device("cpu"))
        drawn = torch.nn.functional.dropout(ones, 0.5), torch.rand(7)
        assert all(torch.equal(a, b) for a, b in zip(drawn, expected, strict=True))
