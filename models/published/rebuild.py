"""From a translation to modules with its weights in them."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import nn

from models.adapters.adapter import add_adapter
from models.adapters.loose import build_loose
from models.encoder.build import build_encoder
from models.heads.predict_sample import PredictSample
from models.objectives.objective import build_objective
from models.published.translation import CannotImport, Translation


class Rebuilt(NamedTuple):
    """What a file holds, ready to run, in eval mode."""

    encoder: Any
    """A transformer or a Swin encoder, with its adapter where the file has one; None where `loose` is all there is."""
    objective: Any = None
    """The objective that pretrained it, where the file has the decoder."""
    head: Any = None
    """The classifier, where the file has one."""
    loose: Any = None
    """Adapter weights without the model they belong to: layers or prompts by name."""

    def parts(self) -> dict[str, nn.Module]:
        """Modules by the name of the part of a checkpoint: encoder, the objective's other children, head; or loose."""
        if self.loose is not None:
            return {"loose": self.loose}
        out = {"encoder": self.encoder}
        if self.objective is not None:
            out |= {name: child for name, child in self.objective.named_children() if name != "encoder"}
        return out if self.head is None else {**out, "head": self.head}


def build(settings: dict[str, Any], num_channels: int, num_outputs: int = 0) -> Rebuilt:
    """Modules of these settings, without the weights.

    Args:
        settings: settings objects by part, as in Translation.
        num_outputs: of the head.
    """
    if "loose" in settings:
        return Rebuilt(None, loose=build_loose(settings["loose"]))
    encoder = build_encoder(settings["encoder"], num_channels)
    if "adapter" in settings:
        add_adapter(encoder, settings["adapter"])
    objective = build_objective(settings["objective"], encoder) if "objective" in settings else None
    head = PredictSample(settings["head"], encoder.width, num_outputs) if "head" in settings else None
    return Rebuilt(encoder, objective, head)


def rebuild(found: Translation, may_miss: tuple[str, ...] = ()) -> Rebuilt:
    """Build and fill. Every weight must come from the file, or be named in `may_miss`, where `*` stands for anything.

    Raises:
        CannotImport: a weight is missing, has another shape, or belongs to nothing.
    """
    made = build(found.settings, found.num_channels, num_outputs(found))
    faults: list[str] = []
    for part, module in made.parts().items():
        own, weights = module.state_dict(), found.weights.get(part, {})
        faults += [f"{part}.{name}: found none, expected {tuple(own[name].shape)}"
                   for name in own if name not in weights and not any(fnmatchcase(f"{part}.{name}", pattern)
                                                                      for pattern in may_miss)]
        faults += [f"{part}.{name}: found {tuple(weights[name].shape)}, expected {tuple(own[name].shape)}"
                   for name in own if name in weights and weights[name].shape != own[name].shape]
        faults += [f"{part}.{name}: found, expected nothing of this name" for name in weights if name not in own]
        if not faults:
            module.load_state_dict(weights, strict=not may_miss)
    if faults:
        shown = "\n  ".join(faults[:12] + ([f"and {len(faults) - 12} more"] if len(faults) > 12 else []))
        raise CannotImport(f"the file does not fill what it was taken for ({found.family}):\n  {shown}\n"
                           "Check --family and --set. A weight that may stay random is named with --missing.")
    for module in made.parts().values():
        module.eval()
    return made


def num_outputs(found: Translation) -> int:
    """Outputs of the head, 0 without one."""
    bias = found.weights.get("head", {}).get("output.bias")
    return 0 if bias is None else len(bias)
