"""What `lacuna --help` says first: the commands by what they are for, those that one begins with on top, and a line to
copy for each."""

from __future__ import annotations

import difflib

GROUPS: dict[str, dict[str, str]] = {
    "to begin with": {
        "doctor": "what this machine can do, and what to do about the rest",
        "init": "look at your folder and table of labels; write manifest and params.yaml",
        "finetune": "train on your labels and score on unseen groups, from one command",
        "verdict": "did pretraining help, and how many labels is it worth?",
        "predict": "answer new files: labels with calibrated probabilities, or masks",
    },
    "data": {
        "ingest": "read raw files once into prepared shards",
        "describe": "what was ingested",
        "verify": "look for damage, leaks and stale statistics",
        "where": "which files are in quarantine, which a pseudonym stands for",
        "fetch": "named public data sets, or a folder that lies elsewhere",
        "note": "a file that stands for a folder, so that DVC keeps no names",
        "sample": "write the embedded sample files of a run",
    },
    "training": {
        "pretrain": "masked modelling on unlabelled and training rows",
        "adapt": "weights that are there go on with unlabelled rows",
        "domain-adaptation": "labels of one source, files of another",
        "few-shot": "classes told apart by a few labelled groups each",
    },
    "answers": {
        "evaluate": "score the arms of a fine-tuning on test rows, with intervals",
        "compare": "evaluated runs side by side: table, picture, CSV, JSON",
        "shift": "what another hospital, region or sensor costs, and damage",
        "embed": "features of files, as Parquet",
    },
    "weights": {
        "import": "a published checkpoint to one that --start takes",
        "export": "a checkpoint to the layout of a published family",
        "merge": "a model tuned by adapters to one that stands by itself",
    },
    "tracking": {
        "sync": "send to MLflow what it missed while it was down",
    },
}
"""Every command once, in a few words."""

EXAMPLES: dict[str, str] = {
    "sample": "lacuna sample xray",
    "ingest": "lacuna ingest NAME && lacuna describe NAME",
    "pretrain": "lacuna pretrain NAME",
    "adapt": "lacuna adapt NAME",
    "finetune": "lacuna finetune NAME\n"
                "lacuna finetune medical --data DIR --labels labels.csv --label COLUMN\n"
                "lacuna finetune satellite --data DIR --labels labels.csv --label COLUMN "
                "--start artifacts/pretrain/NAME --adapter lora --steps 200",
    "domain-adaptation": "lacuna domain-adaptation NAME",
    "evaluate": "lacuna evaluate NAME && lacuna compare",
    "shift": "lacuna shift NAME",
    "verdict": "lacuna verdict NAME",
    "few-shot": "lacuna few-shot NAME",
    "predict": "lacuna predict artifacts/finetune/NAME/scratch/seed0 FOLDER --out answers",
    "embed": "lacuna embed artifacts/pretrain/NAME FOLDER --out features.parquet",
    "import": "lacuna import mae_pretrain_vit_base.pth",
    "export": "lacuna export artifacts/pretrain/NAME --family mae --out weights.pth",
    "merge": "lacuna merge artifacts/finetune/NAME/pretrained/seed0 --out merged",
    "compare": "lacuna compare --out comparison",
    "describe": "lacuna describe NAME",
    "where": "lacuna where NAME",
    "note": "lacuna note DIR --out folder.note",
    "verify": "lacuna verify NAME",
    "fetch": "lacuna fetch",
    "init": "lacuna init DIR --labels labels.csv --label COLUMN",
    "doctor": "lacuna doctor",
    "sync": "lacuna sync",
}
"""By command. NAME is a paragraph of params.yaml."""


def listing() -> str:
    """The commands under their headings."""
    width = max(len(name) for group in GROUPS.values() for name in group) + 2
    return "\n\n".join(
        f"{heading}:\n" + "\n".join(f"  {name:<{width}}{what}" for name, what in group.items())
        for heading, group in GROUPS.items()) + "\n\nlacuna COMMAND --help has its options and an example."


def example(name: str) -> str:
    """What the help of a command ends with."""
    lines = EXAMPLES[name].splitlines()
    return "\n".join([f"example{'s' * (len(lines) > 1)}:", *(f"  {line}" for line in lines)])


def is_command(given: str) -> bool:
    """Whether there is such a command, however its words are joined."""
    return given.replace("_", "-") in EXAMPLES


def unknown(given: str) -> str:
    """A sentence on a command that there is not."""
    near = difflib.get_close_matches(given, EXAMPLES, 1)
    meant = f" Did you mean {near[0]}?" if near else ""
    return f"found no command {given!r}, expected one of {', '.join(EXAMPLES)}.{meant}"
