"""Episodes: who shows, who is asked, what the nearest class mean is, and what the two intervals hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipelines.scoring import metrics
from pipelines.scoring.episodes import (
    SHARPNESS,
    Episode,
    Rows,
    Shown,
    able,
    draw,
    likeness,
    luck_of_shown,
    mean_and_ends,
    tell,
)
from pipelines.scoring.uncertainty import draw_groups


def rows(seed: int, groups: int, first_group: int = 0, classes: int = 4) -> Rows:
    """Three rows per group; a group may hold several classes."""
    rng = np.random.default_rng(seed)
    number = np.repeat(np.arange(first_group, first_group + groups), 3)
    return Rows(np.arange(len(number)) + 1000 * first_group, rng.integers(0, classes, len(number)), number)


def group_of(pool: Rows) -> dict[int, int]:
    return dict(zip(pool.rows.tolist(), pool.groups.tolist(), strict=True))


@pytest.mark.parametrize("same", [True, False])
def test_no_group_shows_and_is_asked_about_and_each_gives_one_row_per_class(same):
    train = rows(0, 60)
    test = train if same else rows(1, 20, first_group=100)
    where, label = {**group_of(train), **group_of(test)}, {}
    for pool in (train, test):
        label |= dict(zip(pool.rows.tolist(), pool.labels.tolist(), strict=True))
    for number in range(50):
        episode = draw(train, test, [0, 1, 2, 3], 3, 5, 4, seed=7, number=number)
        assert episode.support.shape == (3, 5) and len(set(episode.classes.tolist())) == 3
        shown = {where[row] for row in episode.support.reshape(-1).tolist()}
        assert not shown & {where[row] for row in episode.query.tolist()}
        for place, one in enumerate(episode.classes):
            own = episode.support[place].tolist()
            assert len({where[row] for row in own}) == 5 and {label[row] for row in own} == {one}
            asked = episode.query[episode.truth == place].tolist()
            assert len({where[row] for row in asked}) == len(asked) == 4 and {label[row] for row in asked} == {one}


def test_an_episode_is_a_function_of_seed_and_number_and_fewer_shots_are_part_of_more():
    train, test = rows(0, 60), rows(1, 20, first_group=100)
    one, again = (draw(train, test, [0, 1, 2, 3], 3, 5, 4, seed=7, number=3) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    other = [draw(train, test, [0, 1, 2, 3], 3, 5, 4, seed, number) for seed, number in ((7, 4), (8, 3))]
    assert all(not np.array_equal(one.support, each.support) for each in other)


def test_every_class_is_asked_about_as_often_and_a_class_without_groups_is_refused():
    few = Rows(np.arange(6), np.array([0, 0, 0, 0, 1, 1]), np.array([50, 51, 52, 53, 54, 55]))
    episode = draw(rows(0, 60), few, [0, 1], 2, 2, 10, seed=0, number=0)
    assert np.bincount(episode.truth).tolist() == [2, 2]
    with pytest.raises(ValueError, match="found no group to ask about.*lower `shots` or `ways`"):
        draw(few, few, [0, 1], 2, 2, 10, seed=0, number=0)
    assert able(few, few, [0, 1], 2) == [0] and able(few, few, [0, 1], 1) == [0, 1]
    assert able(rows(0, 60), few, [0, 1, 2], 2) == [0, 1]


def test_the_nearest_class_mean_is_that_of_a_search_one_by_one():
    torch.manual_seed(0)
    query, support = torch.randn(6, 5, dtype=torch.float64), torch.randn(3, 4, 5, dtype=torch.float64)
    cosine, squared = likeness(query, support, "cosine"), likeness(query, support, "euclidean")
    for i in range(6):
        for label in range(3):
            mean = [sum(float(support[label, k, e]) for k in range(4)) / 4 for e in range(5)]
            point = query[i].tolist()
            inner = sum(a * b for a, b in zip(point, mean, strict=True))
            angle = inner / math.sqrt(sum(a * a for a in point)) / math.sqrt(sum(b * b for b in mean))
            gap = sum((a - b) ** 2 for a, b in zip(point, mean, strict=True)) / 5
            assert cosine[i, label].item() == pytest.approx(SHARPNESS * angle)
            assert squared[i, label].item() == pytest.approx(-SHARPNESS * gap)


def played(num_classes: int = 3, episodes: int = 6) -> tuple[list[Episode], list[np.ndarray], Rows, Rows]:
    train, test = rows(0, 60, classes=num_classes), rows(1, 15, first_group=100, classes=num_classes)
    several = [draw(train, test, list(range(num_classes)), num_classes, 2, 5, 0, i) for i in range(episodes)]
    rng = np.random.default_rng(3)
    return several, [rng.dirichlet(np.ones(num_classes), len(one.query)) for one in several], train, test


@pytest.mark.parametrize("num_classes", [2, 3])
def test_scores_are_those_of_each_episode_by_itself_and_of_each_resample_of_groups(num_classes):
    episodes, predicted, train, test = played(num_classes)
    drawn = np.concatenate([np.ones((15, 1), np.int64), draw_groups(15, 40, 0)], axis=1)
    told = tell(episodes, predicted, train, test, drawn)
    where = {row: group - 100 for row, group in group_of(test).items()}
    for r in range(41):
        expected: dict[str, list[float]] = {"accuracy": [], "auroc": []}
        for episode, probabilities in zip(episodes, predicted, strict=True):
            weights = np.array([drawn[where[row], r] for row in episode.query.tolist()])
            again = np.repeat(np.arange(len(weights)), weights)  # each row as often as its group was drawn
            found = metrics.values("single_label", episode.truth[again, None], probabilities[again])
            for name, values in expected.items():
                values.append(found[name])
        for name, values in expected.items():
            assert told.resampled[name][r] == pytest.approx(np.nanmean(values)), (name, r)
            if r == 0:
                np.testing.assert_allclose(told.episodes[name], values)
    assert told.num_groups == len({where[row] for one in episodes for row in one.query.tolist()})


def test_the_interval_over_episodes_is_the_usual_one_and_that_over_groups_does_not_shrink_with_episodes():
    mean, low, high = mean_and_ends(np.array([0.2, 0.4, 0.9]))
    reach = 1.96 * np.std([0.2, 0.4, 0.9], ddof=1) / 3**0.5
    assert (mean, low, high) == pytest.approx((0.5, 0.5 - reach, 0.5 + reach))
    drawn = np.concatenate([np.ones((15, 1), np.int64), draw_groups(15, 400, 0)], axis=1)
    widths = []
    for count in (40, 640):
        episodes, _, train, test = played(3, count)
        hard = {group: group % 2 for group in set(test.groups.tolist())}  # half of the groups are always got wrong
        where = group_of(test)
        predicted = [np.eye(3)[(one.truth + [hard[where[row]] for row in one.query.tolist()]) % 3] for one in episodes]
        told = tell(episodes, predicted, train, test, drawn)
        _, low, high = told.over_episodes("accuracy")
        over = told.over_groups("accuracy")
        assert over.low is not None and over.high is not None
        widths.append((high - low, over.high - over.low))
    assert widths[1][0] < widths[0][0] / 3
    assert widths[1][1] > 0.3 and widths[1][1] > 0.7 * widths[0][1]


@pytest.mark.parametrize(("ways", "shots", "available"), [(2, 3, 20), (4, 1, 20), (4, 5, 20), (4, 5, 8)])
def test_the_luck_of_training_groups_is_that_of_drawing_them_anew(ways, shots, available):
    """Scores are a sum of what each shown group does, and noise. Over many draws of the groups of each class, their
    mean over all episodes varies by as much as is estimated from one draw."""
    rng = np.random.default_rng(0)

    def episodes(count: int) -> tuple[np.ndarray, Shown]:
        effects = rng.normal(0, 0.02, (4, available))
        classes = np.sort(rng.random((count, 4)).argsort(1)[:, :ways], 1)
        groups = rng.random((count, ways, available)).argsort(2)[..., :shots]
        values = effects[classes[..., None], groups].sum((1, 2)) + rng.normal(0, 0.05, count)
        return values, Shown(classes, groups, dict.fromkeys(range(4), available))

    estimated = float(np.mean([luck_of_shown(*episodes(400)) for _ in range(60)]))
    truth = 4 * (ways / 4) ** 2 * shots**2 * 0.02**2 / available
    assert 0.85 * truth < estimated < 1.2 * truth
    assert 0.75 * truth < np.var([episodes(1500)[0].mean() for _ in range(200)]) < 1.3 * truth


def test_groups_that_do_nothing_make_no_interval_wider_and_where_it_cannot_be_seen_there_is_none():
    rng = np.random.default_rng(0)
    groups = rng.random((300, 3, 20)).argsort(2)[..., :2]
    classes = np.tile(np.arange(3), (300, 1))
    shown = Shown(classes, groups, dict.fromkeys(range(3), 20))
    luck = [luck_of_shown(rng.normal(0, 0.1, 300), shown) for _ in range(50)]
    assert np.mean(luck) < 0.1**2 / 300
    assert luck_of_shown(np.ones(300), shown) == 0
    assert math.isnan(luck_of_shown(rng.normal(0, 0.1, 300), shown._replace(available=dict.fromkeys(range(3), 2))))
    values = rng.normal(0, 0.02, 20)[groups].sum((1, 2))
    some = luck_of_shown(values, shown._replace(available={0: 20, 1: 20, 2: 2}))
    assert some > luck_of_shown(values, shown), "of the third class nothing can be seen, and it counts for more"
