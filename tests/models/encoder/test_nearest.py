"""The vote of the nearest references, by hand in float64."""

import math

import pytest
import torch

from models.encoder.nearest import nearest_labels


@pytest.mark.parametrize(("k", "temperature"), [(3, 0.07), (3, 1.0), (50, 0.2)])
def test_neighbours_vote_by_the_exponential_of_their_cosine_and_unknown_labels_have_no_vote(k, temperature):
    torch.manual_seed(0)
    reference, labels, queries = torch.randn(12, 5), torch.randint(0, 2, (12, 3)).float(), torch.randn(4, 5)
    labels[torch.rand(12, 3) < 0.3] = torch.nan
    labels[:, 2] = torch.nan
    found = nearest_labels(7 * reference, labels, queries, k, temperature)
    for i, query in enumerate(queries.double()):
        cosine = [float(torch.dot(query, one) / query.norm() / one.norm()) for one in reference.double()]
        nearest = sorted(range(12), key=lambda n: -cosine[n])[:k]
        for o in range(3):
            votes = [(math.exp(cosine[n] / temperature), float(labels[n, o])) for n in nearest
                     if not math.isnan(labels[n, o])]
            expected = sum(w * y for w, y in votes) / sum(w for w, _ in votes) if votes else math.nan
            assert float(found[i, o]) == pytest.approx(expected, rel=1e-4, nan_ok=True)
