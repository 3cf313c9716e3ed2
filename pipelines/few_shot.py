"""Stage `few_shot`: how well are classes told apart by a few labelled groups each, with and without tuning for it?

Episodes show groups of the training split and ask about groups of the test split; the nearest class mean of frozen
features answers. The arm from random weights stands beside, as in every stage.

Legend: N classes of an episode, K support rows per class, n rows, E features, G query groups, R resamples of them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from domains.publish import folder_in_the_making
from domains.sample import Task
from domains.splits import assert_no_group_is_cut, pseudonyms_of
from domains.store import Prepared, open_prepared
from models.encoder.build import AnyEncoderSettings
from models.encoder.transformer import EncoderSettings
from models.heads.predict_sample import PredictSample, SampleHead
from models.heads.tuned import Tuned
from pipelines import report
from pipelines.evaluate import Leak, groups_seen
from pipelines.scoring import few_shot_report
from pipelines.scoring.episodes import SHARPNESS, Distance, Episode, Rows, Told, able, draw, likeness, tell
from pipelines.scoring.few_shot_report import Answer, Way
from pipelines.scoring.metrics import Floats
from pipelines.scoring.temperature import fit_temperature
from pipelines.scoring.uncertainty import draw_groups
from pipelines.settings import plain
from pipelines.tracking import tracking
from pipelines.training.batches import Source, domain_code
from pipelines.training.episodic_tuning import EpisodicTuning, tune
from pipelines.training.finetune_settings import Arm
from pipelines.training.labelled_model import build_model, put_adapters, trained_of
from pipelines.training.memory_bank import fill_memories
from pipelines.training.probes import frozen_features
from pipelines.training.training import Machine, device_of
from pipelines.weights import checkpoints
from pipelines.weights.starts import Start, resolve
from pipelines.weights.tuned_checkpoints import Trunk, predict, save_tuned

_TEST, _TRAIN, _VAL = 1, 2, 3  # streams of episodes
MODEL = "model"
"""Folder of the nearest class mean of all training rows, as a model that predicts."""


@dataclass(frozen=True)
class FewShotRun:
    """One paragraph of `few_shot` in params.yaml."""

    domain: Literal["medical", "satellite", "pointcloud"]
    """Whose loader to use."""
    data: str
    """Name of the ingest run with the labels."""
    task: str
    """Which of its tasks; of single labels."""
    start: str = checkpoints.SCRATCH
    """Checkpoint folder of the `pretrained` arm, or `scratch` for no such arm."""
    arms: tuple[Arm, ...] = ("scratch", "pretrained")
    """Whose features are used; random ones show what the classes' means can do by themselves."""
    encoder: AnyEncoderSettings | None = field(default=None, metadata={"without_kind": EncoderSettings})
    """Needed without a start; with one, leave it out."""
    pool: Literal["mean", "summary", "mean_max", "summary_max"] = "mean"
    """Which features: see the head's setting of the same name."""
    standardise: bool = True
    """Divide features by their spread over the training rows, and move their mean to 0: masked encoders leave them at
    very different scales. Tuned features are moved as the untuned are."""
    ways: int = 0
    """Classes per episode, N; 0: all that have enough groups."""
    shots: tuple[int, ...] = (1, 5)
    """Support groups per class, K, rising; an episode with fewer is part of the one with more."""
    queries: int = 10
    """Query groups per class, at most."""
    episodes: int = 200
    """How many are drawn."""
    distances: tuple[Distance, ...] = ("cosine", "euclidean")
    """How like two features are: by their angle, or by their squared distance."""
    new_classes: tuple[str, ...] = ()
    """Classes that test episodes are made of, and that prompts are never tuned on; empty: all classes are in both, and
    what is new are the groups."""
    prompts: EpisodicTuning | None = None
    """Tune adapters of the pretrained arm on episodes of training groups; null: nothing is tuned."""
    seed: int = 0
    """Of episodes, first weights and resamples."""
    resamples: int = 1000
    """Resamples of test groups."""
    batch_size: int = 128
    """Samples at once; changes nothing but memory."""
    machine: Machine = field(default_factory=Machine)
    """Device."""

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.shots, self.shots[1:], strict=False))
        if not self.shots or not rising or self.shots[0] < 1:
            raise ValueError(f"shots: found {list(self.shots)}, expected rising numbers from 1 on, such as [1, 5].")
        if self.ways < 0 or self.ways == 1 or self.queries < 1 or self.episodes < 2:
            raise ValueError(f"found ways {self.ways}, queries {self.queries}, episodes {self.episodes}, expected 0 or "
                             "at least 2 ways, 1 query and 2 episodes.")
        if not self.distances or not self.arms:
            raise ValueError("distances and arms need at least one entry each.")
        if self.resamples < 100:
            raise ValueError(f"resamples: found {self.resamples}, expected at least 100: an interval ends at the "
                             "rarest of them.")
        scratch = checkpoints.is_scratch(self.start)
        if scratch and self.encoder is None:
            raise ValueError("`start` is scratch, so `encoder` must be given.")
        if self.prompts and (scratch or "pretrained" not in self.arms):
            raise ValueError("prompts: found no pretrained arm to tune, expected a `start` and the arm: prompts on "
                             "random weights learn little. Leave `prompts` out.")


def run(name: str, settings: FewShotRun, root: Path) -> dict[str, Any]:
    """Score every way on the same episodes; write artifacts/few_shot/<name> and reports/few_shot/<name>. Returns the
    headline numbers.

    Raises:
        Leak, GroupCut, ContractMismatch, CheckpointError, TrainingFailed, ValueError: each a sentence for the user.
    """
    prepared = open_prepared(root / "data/prepared" / settings.data, settings.machine.check_reads)
    asked = Asked(settings, prepared)
    start = resolve(settings.start, settings.encoder, prepared.contract, root)
    start = dataclasses.replace(start, encoder=dataclasses.replace(start.encoder, drop_path=0.0))
    _refuse_leak(prepared, start)
    for sentence in [*start.said, *asked.said]:
        print(f"few_shot {name}: {sentence}")
    inputs = {f"data/prepared/{settings.data}": prepared.digest}
    if start.record:
        inputs[settings.start] = start.record["weights_sha256"]
    with tracking.open_run(stage="few_shot", name=name, root=root, settings=plain(settings), inputs=inputs,
                           domain=settings.domain) as tracked:
        ways: dict[str, Way] = {}
        with folder_in_the_making(root / "artifacts/few_shot" / name) as making:
            for way, model, scale, tuned in _models(name, settings, asked, start, tracked):
                trained, weights = trained_of(model, "full" if tuned else "knn")
                ways[way] = Way(asked.answers(model, scale, start), trained, weights, tuned.numbers if tuned else {})
                last = way, model, scale, tuned
            few_shot_report.write_episodes(making / "episodes.csv", ways)
            _save(making / MODEL, settings, asked, start, *last)
        answer = Answer(name, asked.task, len(asked.episodes[0].classes), asked.chance, len(asked.episodes),
                        asked.num_groups, ways, tuple(asked.said))
        said = few_shot_report.write(root / "reports/few_shot" / name, answer)
        print(said)
        tracked.description(answer.sentences(), said)
        tracked.metrics(answer.flat())
        if report.can_draw():
            tracked.picture(root / "reports/few_shot" / name / few_shot_report.PICTURE)
        return answer.headlines()


@dataclass(frozen=True)
class Tuning:
    """What was trained on episodes."""

    trunk: Trunk
    """What it lies on."""
    numbers: dict[str, Any]
    """Validation loss before and at the best step."""


@dataclass(frozen=True)
class Scale:
    """Features moved to mean 0 and spread 1, or left."""

    mean: Tensor
    """E"""
    spread: Tensor
    """E"""

    def __call__(self, features: Tensor) -> Tensor:
        """n E -> n E"""
        return (features - self.mean.to(features)) / self.spread.to(features)


class Asked:
    """The rows and episodes of a run: the same for every way. Raises ValueError where data cannot answer."""

    def __init__(self, settings: FewShotRun, prepared: Prepared) -> None:
        assert_no_group_is_cut(prepared.column("group"), prepared.column("split"))
        self.settings, self.prepared = settings, prepared
        self.labels = prepared.labels(settings.task)
        self.task: Task = prepared.contract.tasks[settings.task]
        if self.task.kind != "single_label":
            raise ValueError(f"task {settings.task}: found {self.task.kind}, expected single_label: an episode takes "
                             "each sample as one of N classes. Name another task.")
        if unknown := [name for name in settings.new_classes if name not in self.task.classes]:
            raise ValueError(f"new_classes: found {unknown[0]!r}, expected some of {', '.join(self.task.classes)}.")
        self.new = [self.task.classes.index(name) for name in settings.new_classes]
        self.base = [label for label in range(len(self.task.classes)) if label not in self.new]
        self.train, self.val, self.test = (self._rows(split) for split in ("train", "val", "test"))
        self.said: list[str] = []
        classes = self._classes(self.test, self.new or self.base, settings.shots[-1], max(settings.ways, 2), "test")
        self.ways = settings.ways or len(classes)
        self.chance = 1 / self.ways
        self.episodes = [draw(self.train, self.test, classes, self.ways, settings.shots[-1], settings.queries,
                              settings.seed * 8 + _TEST, number) for number in range(settings.episodes)]
        column = prepared.column("group")
        for one in self.episodes:
            assert not {column[row] for row in one.support.reshape(-1)} & {column[row] for row in one.query}
        self.num_groups = len({column[row] for one in self.episodes for row in one.query})
        held = len(np.unique(self.test.groups))
        self.drawn = np.concatenate([np.ones((held, 1), np.int64),
                                     draw_groups(held, settings.resamples, settings.seed)], axis=1)

    def source(self, rows: np.ndarray, start: Start) -> Source:
        """Rows as the encoder is to see them."""
        return Source(self.prepared, start.contract, domain_code(self.settings.domain, self.prepared.contract), rows,
                      self.labels)

    def training(self, tuning: EpisodicTuning) -> tuple[Any, list[Episode]]:
        """Number -> episode of training groups; and those whose queries are validation groups. Neither holds a new
        class."""
        pool, held = self.train.only(self.base), self.val.only(self.base)
        classes = self._classes(pool, self.base, tuning.shots, 2, "training", pool)
        shown = self._classes(held, classes, tuning.shots, 2, "validation", pool)
        seed = self.settings.seed * 8
        several = [draw(pool, held, shown, min(tuning.ways, len(shown)), tuning.shots, tuning.queries, seed + _VAL, i)
                   for i in range(tuning.validation_episodes)]
        ways = min(tuning.ways, len(classes))
        return lambda i: draw(pool, pool, classes, ways, tuning.shots, tuning.queries, seed + _TRAIN, i), several

    def answers(self, model: Tuned, scale: Scale, start: Start) -> dict[tuple[Distance, int], Told]:
        """(distance, shots) -> what the nearest class mean reached."""
        rows = np.unique(np.concatenate([np.r_[one.support.reshape(-1), one.query] for one in self.episodes]))
        device = device_of(self.settings.machine)
        features = scale(frozen_features(model, self.source(rows, start), device, self.settings.batch_size)).cpu()
        place = {int(row): i for i, row in enumerate(rows)}
        held = [(features[[place[row] for row in one.support.reshape(-1).tolist()]].reshape(*one.support.shape, -1),
                 features[[place[row] for row in one.query.tolist()]]) for one in self.episodes]
        out = {}
        for distance in self.settings.distances:
            for shots in self.settings.shots:
                predicted: list[Floats] = [
                    likeness(query, support[:, :shots], distance).softmax(-1).double().numpy()
                    for support, query in held]
                fewer = [one._replace(support=one.support[:, :shots]) for one in self.episodes]
                out[distance, shots] = tell(fewer, predicted, self.train, self.test, self.drawn)
        return out

    def _rows(self, split: str) -> Rows:
        rows = self.prepared.rows(split=split, task=self.settings.task)
        return Rows(rows, self.labels[rows, 0].astype(np.int64), self.prepared.codes("group")[rows])

    def _classes(self, query: Rows, classes: list[int], shots: int, least: int, what: str,
                 support: Rows | None = None) -> list[int]:
        """Those with enough groups; says which have not. Raises ValueError when too few are left."""
        pool = self.train if support is None else support
        found = able(pool, query, classes, shots)
        names = self.task.classes
        short = [f"{names[label]} ({len(pool.groups_of(label))} training and {len(query.groups_of(label))} {what} "
                 "groups)" for label in classes if label not in found]
        if len(found) < least:
            raise ValueError(f"few_shot: found {len(found)} classes with {shots} training groups and another one to "
                             f"ask about in {what} rows, expected at least {least}. Too few have {', '.join(short)}. "
                             "Lower `shots` or `ways`, or label more groups.")
        if short:
            self.said.append(f"left out of {what} episodes for want of groups: {', '.join(short)}")
        return found


def _models(name: str, settings: FewShotRun, asked: Asked, start: Start,
            tracked: Any) -> Iterator[tuple[str, Tuned, Scale, Tuning | None]]:
    """Way -> a model whose features answer, from the plainest to the most tuned."""
    head, device = SampleHead(pool=settings.pool, norm="none"), device_of(settings.machine)
    train = asked.source(asked.train.only(asked.base).rows, start)
    for arm in settings.arms:
        if arm == "pretrained" and checkpoints.is_scratch(settings.start):
            continue
        begin = start if arm == "pretrained" else start.random()
        model = build_model(begin, head, asked.task, settings.seed)
        scale = _scale(frozen_features(model, train, device, settings.batch_size), settings.standardise)
        yield arm, model, scale, None
        if arm == "pretrained" and settings.prompts is not None:
            model = build_model(begin, head, asked.task, settings.seed)
            trunk = put_adapters(model, settings.prompts.adapters, settings.start, settings.seed)
            assert trunk is not None, "the settings ask for at least one adapter"
            fill_memories(model, train, device)
            training, validation = asked.training(settings.prompts)
            model.head.requires_grad_(False)
            numbers = tune(model, settings.prompts, train, training, validation, scale, device, settings.seed,
                           lambda step, found: tracked.metrics({f"prompts.{key}": value for key, value
                                                                in found.items()}, step=step))
            trained, whole = trained_of(model, "full")
            print(f"few_shot {name}: tuned {trained} of {whole} weights ({trained / whole:.2%}) on "
                  f"{settings.prompts.steps} episodes; best at step {numbers['best_step']}")
            yield "pretrained, tuned", model, scale, Tuning(trunk, numbers)


def _scale(features: Tensor, wanted: bool) -> Scale:
    """By training rows. A feature that never changes is left as it is."""
    if not wanted:
        return Scale(torch.zeros(features.shape[1]), torch.ones(features.shape[1]))
    spread = features.std(0, correction=0)
    return Scale(features.mean(0), torch.where(spread > 0, spread, torch.ones_like(spread)))


def _refuse_leak(prepared: Prepared, start: Start) -> None:
    """Nothing that is asked about, or that chooses prompts, may have been pretrained on. Raises Leak."""
    column = prepared.column("group")
    held = {str(column[row]) for row in prepared.rows(split=["val", "test"])}
    if seen := groups_seen(start.record, held):
        raise Leak(f"leak: found {len(seen)} of {len(held)} validation and test groups in what `start` was pretrained "
                   f"on ({pseudonyms_of(seen)}), expected none. Remedy: pretrain again with the present splits, or "
                   "move these groups to train.")


def _save(folder: Path, settings: FewShotRun, asked: Asked, start: Start, way: str, model: Tuned, scale: Scale,
          tuned: Tuning | None) -> None:
    """The nearest class mean of all training rows, by squared distance, as a linear layer: a model that predicts."""
    device = device_of(settings.machine)
    features = scale(frozen_features(model, asked.source(asked.train.rows, start), device, settings.batch_size)).cpu()
    labels = torch.from_numpy(asked.train.labels)
    assert isinstance(model.head, PredictSample)
    with torch.no_grad():
        set_class_means(model.head.output, features, labels, scale)
    val = asked.source(asked.val.rows, start)
    fitted = fit_temperature(predict(model, val, device=device), asked.labels[asked.val.rows], asked.task.kind)
    reader = asked.prepared.folder / "reader.json"
    whole = tuned is None
    save_tuned(folder, model.cpu(), start.contract, SampleHead(pool=settings.pool, norm="none"), asked.task, {
        "domain": settings.domain, "temperature": fitted.value, "temperature_fit": plain(fitted),
        "reader": json.loads(reader.read_text()) if reader.is_file() else None,
        "pool_groups": start.record.get("pool_groups", []),
        "provenance": {"arm": way, "seed": settings.seed, "start": settings.start, "data": settings.data,
                       "start_weights": start.record.get("weights_sha256"), **start.provenance(),
                       "data_digest": asked.prepared.digest, "task": settings.task, "protocol": "class means"}},
        () if whole else settings.prompts.adapters, None if whole else tuned.trunk)  # type: ignore[union-attr]


def set_class_means(layer: nn.Linear, features: Tensor, labels: Tensor, scale: Scale) -> None:
    """Make a layer on raw features compute, up to a constant per row, minus the mean squared difference from each
    class's mean of scaled features, times SHARPNESS: |f|^2 is the same for all classes, and the rest is linear.

    Args:
        features: n E, scaled. labels: n, class of each. A class without rows is never predicted.
    """
    width = features.shape[1]
    for label in range(layer.out_features):
        own = features[labels == label]
        if not len(own):
            layer.weight[label], layer.bias[label] = 0.0, -1e4
            continue
        mean = own.mean(0)
        weight = 2 * SHARPNESS / width * mean / scale.spread
        layer.weight[label] = weight
        layer.bias[label] = -SHARPNESS / width * mean.square().sum() - (weight * scale.mean).sum()
