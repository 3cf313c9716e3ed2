"""The linear probe against the same problem solved in float64 by another library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize

from domains.store import open_prepared
from models.encoder.transformer import Encoder, EncoderSettings
from models.heads.predict_sample import SampleHead
from models.heads.task_loss import TaskLoss
from models.heads.tuned import Tuned, build_head
from pipelines.settings import build
from pipelines.training.batches import Source, domain_code
from pipelines.training.probes import PENALTIES, fit_linear, frozen_features
from pipelines.weights.tuned_checkpoints import predict
from tests.fabricate import TOKENIZERS, prepare

CPU = torch.device("cpu")


def loss_of(logits: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean(np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(y)), y]))


def solved(x: np.ndarray, y: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights E 2 and bias 2 with the least mean cross-entropy plus half the penalty times the squared weights."""

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = flat[:-2].reshape(-1, 2), flat[-2:]
        logits = x @ weights + bias
        wrong = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)) - np.eye(2)[y]
        slope = np.r_[(x.T @ wrong / len(y) + penalty * weights).ravel(), wrong.mean(0)]
        return loss_of(logits, y) + penalty / 2 * float((weights**2).sum()), slope

    flat = minimize(objective, np.zeros(2 * x.shape[1] + 2), jac=True, method="L-BFGS-B",
                    options={"maxiter": 2000, "ftol": 1e-12, "gtol": 1e-7}).x
    return flat[:-2].reshape(-1, 2), flat[-2:]


def test_features_are_standardised_by_training_rows_and_validation_chooses_the_penalty(tmp_path: Path) -> None:
    prepared = open_prepared(prepare(tmp_path / "data", count=120))
    labels, code = prepared.labels("bright").copy(), domain_code("medical")
    swapped = np.random.default_rng(0).random(len(labels)) < 0.3              # so that no penalty is not the best one
    labels[swapped] = 1 - labels[swapped]
    train, val = (Source(prepared, prepared.contract, code, prepared.rows(split=split, task="bright"), labels)
                  for split in ("train", "val"))
    torch.manual_seed(0)
    size = {"width": 24, "depth": 1, "num_heads": 2}
    encoder = Encoder(build(EncoderSettings, {"tokenizer": TOKENIZERS["xray"], "size": size}, "encoder"), 1)
    model = Tuned(encoder, build_head(SampleHead(batch_norm=True), 24, 2), TaskLoss("single_label", 2)).eval()
    fit_linear(model, train, val, CPU)

    x, x_val = (frozen_features(model, source, CPU).double().numpy() for source in (train, val))
    mean, std = x.mean(0), np.sqrt(x.var(0) + 1e-6)
    np.testing.assert_allclose(model.head.norm.running_mean, x.mean(0), atol=1e-5)
    np.testing.assert_allclose(model.head.norm.running_var, x.var(0), rtol=1e-4)
    y, y_val = (labels[source.rows, 0].astype(int) for source in (train, val))
    found = {}
    for penalty in PENALTIES:
        weights, bias = solved((x - mean) / std, y, penalty)
        logits = (x_val - mean) / std @ weights + bias
        found[penalty] = (loss_of(logits, y_val), loss_of((x - mean) / std @ weights + bias, y), logits)
    chosen = min(found, key=lambda penalty: found[penalty][0])
    assert chosen != min(found, key=lambda penalty: found[penalty][1]), "training loss would choose another one"
    told = predict(model, val)
    np.testing.assert_allclose(told[:, 1] - told[:, 0], found[chosen][2][:, 1] - found[chosen][2][:, 0], atol=0.02)
