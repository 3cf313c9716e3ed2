"""Settings of the stage `finetune`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from models.adapters.adapter import AdapterSettings
from models.encoder.build import AnyEncoderSettings
from models.encoder.flexible_patches import PatchSizes
from models.encoder.initialisation import Initialisation
from models.encoder.transformer import EncoderSettings
from models.heads.predict_sample import SampleHead
from models.heads.segment_grid import SegmentHead
from models.heads.task_loss import Imbalance
from models.heads.tuned import HeadSettings, NearestHead
from pipelines.training.training import Machine, Optimisation
from pipelines.weights import checkpoints

Arm = Literal["scratch", "pretrained"]


@dataclass(frozen=True)
class FinetuneRun:
    """One paragraph of `finetune` in params.yaml."""

    domain: Literal["medical", "satellite", "pointcloud"]
    """Whose loader and augmentation to use."""
    data: str
    """Name of the ingest run with the labels."""
    task: str
    """Which of its tasks."""
    start: str = checkpoints.SCRATCH
    """Checkpoint folder of the `pretrained` arm, or `scratch` for no such arm."""
    arms: tuple[Arm, ...] = ("scratch", "pretrained")
    """Ways of initialising that are compared; `pretrained` needs a start."""
    protocol: Literal["full", "linear", "knn"] = "full"
    """full: all weights are trained. linear: one layer on frozen features.
    knn: vote of the nearest training samples."""
    encoder: AnyEncoderSettings | None = field(default=None, metadata={"without_kind": EncoderSettings})
    """Needed without a start; with one, leave it out."""
    initialisation: Initialisation = "xavier"
    """How the weights of the scratch arm are drawn. mimetic: attention that looks trained (Trockman & Kolter 2023)."""
    drop_path: float = 0.0
    """Stochastic depth while fine-tuning."""
    flexible_patches: PatchSizes = ()
    """Patch sizes like [[8, 8], [16, 16]], of which every step draws one (FlexiViT), with protocol full; empty: always
    the encoder's own, which validation, test and prediction use in any case."""
    adapters: tuple[AdapterSettings, ...] = ()
    """Small parts that are added to the pretrained encoder, in this order; then they and the head alone are trained.
    The scratch arm is trained whole all the same, since adapters on random weights show nothing. Empty: all is
    trained."""
    head: HeadSettings = field(default_factory=SampleHead)
    """What turns features into predictions; protocol knn takes kind: nearest, a task of masks kind: segment."""
    around_classes: float = 1 / 3
    """Of masks: share of the training crops that are placed around a pixel of a class, where samples are larger than
    crops; the others lie anywhere. Else a small thing in a large volume is hardly ever seen."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Every arm is trained once per seed (head, order, augmentation; weights too when from scratch)."""
    grid: tuple[float, ...] = (5e-4,)
    """Peak learning rates tried in every arm; the one with the lowest mean validation loss over seeds is taken."""
    optimisation: Optimisation = field(
        default_factory=lambda: Optimisation(steps=500, batch_size=32, betas=(0.9, 0.999)))
    """Steps and batch. `learning_rate` is replaced by the grid's."""
    patience: int = 4
    """Validations without a better loss before a training stops; 0: never stop early."""
    validations: int = 10
    """How often the validation loss is looked at."""
    augment: dict[str, Any] | None = None
    """The domain's augmentation settings; null: none."""
    imbalance: Imbalance = field(default_factory=Imbalance)
    """Class weights."""
    label_smoothing: float = 0.0
    """Share of a label spread over all classes (single_label)."""
    label_share: float = 1.0
    """Use this share of the labelled training groups (the budget), the same ones in every arm and seed."""
    label_seed: int = 0
    """Which groups those are; a smaller share of the same seed is part of a larger one."""
    processes: int = 1
    """Trainings at once, each in a process with its share of the cores, on the next GPU where there are some. Tiny
    models, and machines with several GPUs, are done sooner; the weights are those of one process with as many
    threads."""
    machine: Machine = field(default_factory=Machine)
    """Devices and precision."""

    def __post_init__(self) -> None:
        if not self.seeds or not self.grid or not self.arms:
            raise ValueError("seeds, grid and arms need at least one entry each.")
        if not 0 < self.label_share <= 1:
            raise ValueError(f"label_share: found {self.label_share}, expected a share in (0, 1].")
        if (self.protocol == "knn") != isinstance(self.head, NearestHead):
            raise ValueError(f"protocol {self.protocol} does not go with head {self.head.kind}: "
                             "knn takes kind: nearest, the others kind: sample or segment.")
        if not 0 <= self.around_classes <= 1:
            raise ValueError(f"around_classes: found {self.around_classes}, expected a share from 0 to 1.")
        if checkpoints.is_scratch(self.start) and self.encoder is None:
            raise ValueError("`start` is scratch, so `encoder` must be given.")
        if self.flexible_patches and (self.protocol != "full" or not isinstance(self.head, SampleHead)):
            raise ValueError(f"flexible_patches: found protocol {self.protocol} with head {self.head.kind}, expected "
                             "full with sample: the kernel must be trained, and a head that answers per patch has one "
                             "size. Leave flexible_patches out.")
        if self.adapters and (checkpoints.is_scratch(self.start) or "pretrained" not in self.arms):
            raise ValueError(f"adapters: found {len(self.adapters)} with start {self.start} and arms "
                             f"{list(self.arms)}, expected a start and the arm pretrained: adapters go on pretrained "
                             "weights, and the scratch arm is trained whole. Name a start, or leave adapters out.")
        if self.adapters and self.protocol != "full":
            raise ValueError(f"adapters: found {len(self.adapters)} with protocol {self.protocol}, expected protocol "
                             "full: the others train nothing inside the encoder. Leave one of the two out.")
        if self.protocol == "linear" and not _is_one_layer(self.head):
            raise ValueError(f"protocol linear: found {self.head}, expected one linear layer on standardised features. "
                             "Set head: {kind: sample, batch_norm: true}, with neither `hidden` nor `layers`; of masks "
                             "{kind: segment, design: linear}.")
        if self.adapters and self.optimisation.layer_decay != 1:
            raise ValueError(f"adapters: found layer_decay {self.optimisation.layer_decay}, expected 1: what is new in "
                             "early blocks has as far to go as what is new in late ones. Leave layer_decay out.")
        if self.adapters and self.flexible_patches:
            raise ValueError("adapters: found flexible_patches beside them, expected one of the two: the patch kernel "
                             "is frozen under adapters. Leave flexible_patches out.")
        if self.processes < 1 or (self.processes > 1 and self.machine.devices * self.machine.num_nodes > 1):
            raise ValueError(f"processes: found {self.processes} with machine.devices {self.machine.devices} and "
                             f"num_nodes {self.machine.num_nodes}, expected at least 1, and 1 where one training takes "
                             "several devices. Change one of them.")
        if self.machine.strategy == "fsdp":
            raise ValueError("machine.strategy: found fsdp, expected auto or ddp: fine-tuning keeps its best weights "
                             "whole on each device. Leave it out.")
        if self.initialisation != "xavier" and "scratch" not in self.arms:
            raise ValueError(f"initialisation {self.initialisation} is for the scratch arm; found arms "
                             f"{list(self.arms)}. Leave `initialisation` out, or add the arm.")


def _is_one_layer(head: HeadSettings) -> bool:
    match head:
        case SampleHead():
            return head.batch_norm and not head.hidden and not head.layers
        case SegmentHead():
            return head.design == "linear"
    return False
