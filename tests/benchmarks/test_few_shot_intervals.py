from benchmarks.few_shot_intervals import measure


def test_the_interval_over_groups_holds_the_truth_and_that_over_episodes_does_not():
    held = measure(12, train=10, test=8, episodes=100, shots=2, resamples=100, fresh=400)
    assert 0.3 < held.truth < 0.9
    assert held.over_groups >= 0.75 > 0.5 >= held.over_episodes
