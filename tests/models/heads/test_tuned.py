"""An encoder with a head: what of it a frozen trunk keeps."""

import torch

from models.heads.predict_sample import PredictSample, SampleHead
from models.heads.task_loss import TaskLoss
from models.heads.tuned import Tuned
from tests.models.adapters.encoders import WIDTH, make


def test_batch_statistics_of_a_frozen_trunk_stay_and_those_of_a_free_one_follow():
    encoder, _ = make("points")
    head = SampleHead(batch_norm=True)
    model = Tuned(encoder, PredictSample(head, WIDTH, 2), TaskLoss("single_label", 2)).train()
    x = torch.randn(4, 32, 3)

    def statistics() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        return tuple([value.clone() for name, value in part.named_buffers() if "running_" in name]
                     for part in (model.encoder, model.head))

    first = statistics()
    model(x)
    free = statistics()
    assert first[0] and not any(torch.equal(one, other) for one, other in zip(first[0], free[0], strict=True))
    model.freeze_trunk()
    model(x)
    for mode in (True, False, True):  # a training looks at validation rows in between
        model.train(mode)
        model(x)
    frozen = statistics()
    assert all(torch.equal(one, other) for one, other in zip(free[0], frozen[0], strict=True))
    assert frozen[1] and not any(torch.equal(one, other) for one, other in zip(free[1], frozen[1], strict=True))
