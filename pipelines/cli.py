"""The command `lacuna`: parse, call a stage, print what was done and where it lies. Errors are sentences."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines.commands import endings, overview
from pipelines.commands.endings import USER_ERROR
from pipelines.told_to_stop import ending_on_signals

DOMAINS = ("medical", "satellite", "pointcloud")
ADAPTERS = ("lora", "prompts", "gated_prompts", "singular_values", "bias", "bottleneck", "dynamic_prompts",
            "prior_prompts", "geometry", "any2point")


def main(arguments: Sequence[str]) -> int:
    """Run one command.

    Returns:
        The exit code: 0 done, 2 something for the user to mend, 3 more files refused than allowed, 4 a full disk, 5 a
        training that met too many numbers that are not finite, 1 a fault of ours, 130 stopped by Ctrl-C, 143 by
        SIGTERM, 138 by SIGUSR1, 129 by SIGHUP.
    """
    command = next((one for one in arguments if not one.startswith("-")), "")
    if command and not overview.is_command(command):
        print(f"lacuna: {overview.unknown(command)}", file=sys.stderr)
        return USER_ERROR
    options = parser().parse_args(list(arguments) or ["--help"])
    try:
        with ending_on_signals():
            code: int | None = options.call(options)
        return code or 0
    except KeyboardInterrupt as stop:
        return endings.stopped(stop, options.goes_on)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output has left: `| head`
        return 0
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        return endings.explained(error)


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    plain = argparse.RawDescriptionHelpFormatter  # leaves lines as they are
    top = argparse.ArgumentParser(
        prog="lacuna", usage="lacuna [--debug] COMMAND ...", formatter_class=plain, epilog=overview.listing(),
        description="Adapt vision transformers to X-ray, CT, multispectral and point-cloud data.")
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = top.add_subparsers(required=True, metavar="COMMAND", dest="command", help=argparse.SUPPRESS)

    def command(name: str, call: Callable[[argparse.Namespace], int | None], help: str) -> argparse.ArgumentParser:
        spoken = name.replace("_", "-")
        sub = commands.add_parser(spoken, description=textwrap.fill(help), aliases=[] if spoken == name else [name],
                                  formatter_class=plain, epilog=overview.example(spoken))
        sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        sub.set_defaults(call=call, goes_on=True if call is _predict else None)
        return sub

    for stage, what in STAGES.items():
        sub = command(stage, _stage, what)
        sub.set_defaults(stage=stage, goes_on=stage in GOES_ON)
        sub.add_argument("run", metavar="NAME" if stage != "finetune" else "NAME|DOMAIN",
                         help=f"a run under `{stage}` in params.yaml"
                              + ("; or medical, satellite, pointcloud with --data" if stage == "finetune" else ""))
        if stage in GOES_ON and stage != "verdict":
            sub.add_argument("--resume-despite-code-change", action="store_true",
                             help="go on with what a killed run of other code left; this is recorded")
        if stage == "verdict":
            sub.add_argument("--cells", default="", metavar="I/N",
                             help="only train the I-th of N shares of the cells (from 0), for several machines")
        if stage == "finetune":
            _folder_options(sub)
    _people_commands(command)
    return top


STAGES = {
    "sample": "write the embedded sample files of a run",
    "ingest": "read raw files once into prepared shards",
    "pretrain": "masked modelling on unlabelled and training rows",
    "adapt": "go on with pretrained weights on unlabelled rows: further pretraining, self-distillation",
    "finetune": "train a labelled task from each start; or: lacuna finetune DOMAIN --data DIR --labels CSV",
    "domain_adaptation": "labels of one source, files of another: domain-adversarial, or an averaged teacher",
    "evaluate": "score the arms on test rows, with intervals",
    "shift": "trained on one source, tested on others and under damage, before and after adapting",
    "verdict": "arms, adaptations, budgets of labels and seeds: is pretraining worth it, and by how many labels?",
    "few_shot": "classes told apart by a few labelled groups each, with and without tuning for it",
}


GOES_ON = ("pretrain", "adapt", "finetune", "domain_adaptation", "verdict")
"""Stages that go on with what a stopped one has left."""


def _folder_options(sub: argparse.ArgumentParser) -> None:
    own = sub.add_argument_group("your own folder (with medical, satellite or pointcloud instead of NAME)")
    own.add_argument("--data", type=Path, help="folder with the files, or with one folder per class")
    own.add_argument("--labels", type=Path, metavar="CSV",
                     help="table with a row per file: its name, the patient, scene or object that it is of, labels; "
                          "optional: split, source, mask_path")
    _column_options(own)
    own.add_argument("--label", action="append", default=[], metavar="COLUMN",
                     help="label column; several for multi-label (default: `label`)")
    own.add_argument("--task", choices=["single_label", "multi_label", "regression", "segmentation"],
                     help="default: by the columns; masks where these are all that is there")
    own.add_argument("--kind", choices=["xray", "ct"], help="medical only; default: by the files")
    own.add_argument("--start", default=None, help="checkpoint folder, or scratch (the default)")
    own.add_argument("--protocol", choices=["full", "linear", "knn"], default="full", help="what is trained")
    own.add_argument("--adapter", action="append", default=[], choices=ADAPTERS,
                     help="tune small added parts and the head alone, the start frozen; several add up; "
                          "--set adapters=[{kind: lora, rank: 4}] says more")
    own.add_argument("--steps", type=int, default=None, help="updates of the weights")
    own.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes",
                     help="change any setting by its dotted path: read.size=[64,64], optimisation.batch_size=16")
    own.add_argument("--name", default=None, help="name of the run (default: by folder and labels)")


def _column_options(own: Any) -> None:
    own.add_argument("--files", default="", metavar="COLUMN",
                     help="the table's column that names the files (default: the one whose cells do)")
    own.add_argument("--group", default="", metavar="COLUMN",
                     help="its column that says whose they are: patient, scene or object, which a split never cuts "
                          "(default: the one with such a heading)")


def _people_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command("predict", _predict, "labels with calibrated probabilities for native files, as CSV and JSON")
    sub.add_argument("checkpoint", type=Path)
    sub.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="files or folders")
    sub.add_argument("--out", type=Path, required=True, help="folder for predictions.csv and .json")
    sub.add_argument("--test-time", default="", metavar="WAY",
                     help="adapt to these files without labels, and answer them together: norm (statistics), tent "
                          "(entropy), lame (agreement among neighbours) or '{kind: tent, steps: 5}'; answers then "
                          "depend on each other")
    _use_options(sub)
    sub = command("embed", _embed, "features of native files, as Parquet")
    sub.add_argument("checkpoint", type=Path)
    sub.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="files or folders")
    sub.add_argument("--out", type=Path, default=Path("features.parquet"))
    _use_options(sub)
    _published_commands(command)
    sub = command("merge", _merge, "a model tuned by adapters to a checkpoint that stands by itself")
    sub.add_argument("checkpoint", type=Path)
    sub.add_argument("--out", type=Path, required=True, help="folder to write")
    sub = command("compare", _compare, "evaluated runs side by side: printed, plotted, exported")
    sub.add_argument("runs", nargs="*", metavar="RUN", help="evaluate runs; none: all")
    sub.add_argument("--out", type=Path, default=None, help="folder for the plot, CSV and JSON")
    sub = command("describe", _describe, "what was ingested")
    sub.add_argument("data", help="name of an ingest run, or a prepared folder")
    sub = command("where", _where, "which files and groups pseudonyms stand for; prints names")
    sub.add_argument("run", metavar="NAME", help="an ingest run")
    sub.add_argument("codes", nargs="*", metavar="PSEUDONYM", help="none: the files in quarantine")
    sub = command("note", _note, "a file that stands for a folder, so that DVC keeps no names of raw files")
    sub.add_argument("folder", type=Path)
    sub.add_argument("--out", type=Path, required=True, help="the note, for `files.folder` of an ingest run")
    sub = command("verify", _verify, "check prepared data and checkpoints for damage and leaks")
    sub.add_argument("names", nargs="*", metavar="NAME", help="runs or folders; none: all there are")
    sub.add_argument("--quick", action="store_true", help="bytes, index and splits; no statistics, no repeats")
    sub = command("fetch", _fetch, "a named public data set, or a folder that lies elsewhere, to a folder here; "
                  "without a name: the list")
    sub.add_argument("what", nargs="?", default="", metavar="NAME|ADDRESS")
    sub.add_argument("--out", type=Path, default=None, help="folder (default: data/raw/NAME)")
    sub.add_argument("--mirror", default="", metavar="ADDRESS", help="fetch the same archives from there")
    sub.add_argument("--no-download", action="store_true", help="the files are in the folder; write the manifest")
    sub.add_argument("--checksums", default="", metavar="FILE",
                     help="sums to compare an address's files with: a file here, or below the address")
    sub = command("init", _init, "look at a folder and its table of labels; write a manifest and the paragraphs of "
                  "params.yaml to start from")
    sub.add_argument("folder", type=Path, metavar="DIR", help="folder with images, volumes, scenes or point clouds")
    sub.add_argument("--labels", type=Path, default=None, metavar="CSV",
                     help="your table of labels, with headings of its own (default: the one .csv in DIR)")
    _column_options(sub)
    sub.add_argument("--label", default="", metavar="COLUMN", help="the column to learn (default: the one that can be)")
    sub.add_argument("--add", action="store_true", help="put the paragraphs into the params.yaml that is there")
    sub.add_argument("--out", type=Path, default=Path(), help="where to write them (default: here)")
    command("doctor", _doctor, "check this machine")
    command("sync", _sync, "send to MLflow what could not be sent while it was down")


def _use_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--source", default="", help="read them as this source of the data run was read (units, bands)")
    sub.add_argument("--bad-files", type=float, default=0.0, metavar="SHARE",
                     help="share of the files that may be refused, from 0 (the default) to 1; with more the others are "
                          "answered all the same, and the exit code is 3")
    sub.add_argument("--merge-tokens", type=int, default=0, metavar="R",
                     help="merge the R likest pairs of tokens in every block: faster, a little less exact")
    sub.add_argument("--patch", type=int, nargs="+", default=[], metavar="SIZE",
                     help="cut patches of this size: for models tuned with flexible_patches")


def _published_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command("import", _import, "a published checkpoint to a checkpoint folder that `start:` and --start take")
    sub.add_argument("file", type=Path, help="as torch.save or safetensors wrote it; nothing in it is run")
    sub.add_argument("--out", type=Path, default=None, help="folder (default: artifacts/import/<name of the file>)")
    sub.add_argument("--family", default="auto", help="whose names it has (default: recognised by them)")
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes",
                     help="what weights do not tell: num_heads=6, channels=[B4,B3,B2]")
    sub.add_argument("--missing", action="append", default=[], metavar="NAME",
                     help="a weight, by our name, that may be missing and stay random; * stands for anything")
    sub.add_argument("--drop", action="append", default=[], metavar="NAME",
                     help="a tensor, by its name in the file, to leave behind; * stands for anything")
    sub.add_argument("--patch", type=int, nargs="+", default=[], metavar="SIZE",
                     help="resize the patch kernels to this size")
    sub.add_argument("--new-channels", nargs="+", default=[], metavar="NAME",
                     help="add channels that the weights do not know; their kernels begin with zeros")
    sub = command("export", _export, "a checkpoint folder to a file in the layout of a published family")
    sub.add_argument("checkpoint", type=Path)
    sub.add_argument("--family", required=True, help="in whose layout: mae, point_mae, ...")
    sub.add_argument("--out", type=Path, required=True, help="the file to write")
    sub.add_argument("--encoder-only", action="store_true", help="leave decoder and head out")


def _stage(options: argparse.Namespace) -> None:
    root = Path.cwd()
    if options.stage == "finetune" and options.run in DOMAINS:
        from pipelines.commands.folder_run import finetune_folder
        finetune_folder(options, root)
        return
    result = run_stage(options.stage, options.run, root, options)
    if result:  # a process that only follows has none
        print_result(options.stage, options.run, result, root)


def run_stage(stage: str, name: str, root: Path, options: argparse.Namespace | None = None) -> dict[str, Any]:
    """Load one stage, and nothing of the others, and run it."""
    from domains.publish import require_writable
    from pipelines.settings import load_run
    for folder in ({"sample": "data/raw", "ingest": "data/prepared"}.get(stage, f"artifacts/{stage}"),
                   f"reports/{stage}", ".work"):
        require_writable(root / folder)  # before a library is loaded: not when there is something to save
    if "DVC_STAGE" in os.environ:
        from pipelines.commands.under_dvc import end_with_dvc
        end_with_dvc()
    despite = bool(getattr(options, "resume_despite_code_change", False))
    match stage:
        case "sample":
            from pipelines import sample
            return sample.run(name, load_run(stage, name, sample.SampleRun, root), root)
        case "ingest":
            from pipelines import ingest
            return ingest.run(name, load_run(stage, name, ingest.DataRun, root), root)
        case "pretrain":
            from pipelines import pretrain
            return pretrain.run(name, load_run(stage, name, pretrain.PretrainRun, root), root, despite)
        case "adapt":
            from pipelines import adapt
            return adapt.run(name, load_run(stage, name, adapt.AdaptRun, root), root, despite)
        case "finetune":
            from pipelines import finetune
            from pipelines.training.finetune_settings import FinetuneRun
            return finetune.run(name, load_run(stage, name, FinetuneRun, root), root, despite)
        case "domain_adaptation":
            from pipelines import domain_adaptation as between
            return between.run(name, load_run(stage, name, between.DomainAdaptationRun, root), root, despite)
        case "evaluate":
            from pipelines import evaluate
            return evaluate.run(name, load_run(stage, name, evaluate.EvaluateRun, root), root)
        case "shift":
            from pipelines import shift
            return shift.run(name, load_run(stage, name, shift.ShiftRun, root), root)
        case "verdict":
            from pipelines import verdict
            share = verdict.share_of(str(getattr(options, "cells", "")))
            return verdict.run(name, load_run(stage, name, verdict.VerdictRun, root), root, share)
        case "few_shot":
            from pipelines import few_shot
            return few_shot.run(name, load_run(stage, name, few_shot.FewShotRun, root), root)
    raise ValueError(f"stage: found {stage!r}, expected one of {', '.join(STAGES)}.")


def print_result(stage: str, name: str, result: dict[str, Any], root: Path) -> None:
    """What was done and where it lies, in a few lines."""
    shown = {key: value for key, value in result.items() if isinstance(value, int | float | str)}
    print(f"{stage} {name}: " + (_ingested(result) if stage == "ingest" else ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {str(value).removesuffix('.')}"
        for key, value in shown.items())))
    made = f"data/prepared/{name}" if stage == "ingest" else f"artifacts/{stage}/{name}"
    for folder in (made, f"reports/{stage}/{name}"):
        if (root / folder).exists():
            print(f"  {folder}")


def _ingested(result: dict[str, Any]) -> str:
    splits = ", ".join(f"{split} {result[f'{split}_samples']}" for split in ("train", "val", "test", "unlabelled")
                       if result.get(f"{split}_samples"))
    leaks = sum(count for key, count in result.items() if key.endswith("_leaks"))
    return (f"{result['samples']} samples of {result['groups']} groups ({splits}); {result['pool']} may be pretrained "
            f"on; {result['quarantined']} of {result['files']} files in quarantine; {leaks} pairs repeat across splits")


def _predict(options: argparse.Namespace) -> int:
    from pipelines.prediction.native import Edits
    from pipelines.prediction.predict import predict_to_folder
    return predict_to_folder(options.checkpoint, options.inputs, options.out, source=options.source,
                             edits=Edits(options.merge_tokens, tuple(options.patch)), test_time=options.test_time,
                             bad_files=options.bad_files)


def _embed(options: argparse.Namespace) -> int:
    from pipelines.prediction.embed import embed_to_parquet
    from pipelines.prediction.native import Edits
    return embed_to_parquet(options.checkpoint, options.inputs, options.out, source=options.source,
                            edits=Edits(options.merge_tokens, tuple(options.patch)), bad_files=options.bad_files)


def _import(options: argparse.Namespace) -> None:
    from pipelines.settings import changes_of
    from pipelines.weights.import_published import import_weights
    from pipelines.weights.import_report import short
    out, record = import_weights(options.file, options.out, family=options.family, given=changes_of(options.changes),
                                 missing=options.missing, drop=options.drop, patch=options.patch,
                                 new_channels=options.new_channels)
    print(f"{short(record)}\n{out}\nevery tensor: {out}/report.txt")


def _export(options: argparse.Namespace) -> None:
    from pipelines.weights.export_published import export_weights
    for sentence in export_weights(options.checkpoint, options.out, options.family, options.encoder_only):
        print(sentence)
    print(options.out)


def _merge(options: argparse.Namespace) -> None:
    from pipelines.weights.tuned_checkpoints import fold
    print(f"{fold(options.checkpoint, options.out)}\n{options.out}")


def _compare(options: argparse.Namespace) -> None:
    from pipelines.commands.compare import compare
    print(compare(options.runs, Path.cwd(), options.out))


def _describe(options: argparse.Namespace) -> None:
    from pipelines.commands.describe import describe
    folder = Path(options.data)
    print(describe(folder if (folder / "index.parquet").is_file() else Path("data/prepared") / options.data))


def _where(options: argparse.Namespace) -> None:
    from pipelines.commands.where import where
    print(where(options.run, options.codes, Path.cwd()))


def _note(options: argparse.Namespace) -> None:
    from domains.folder_note import write_note
    print(f"note: {write_note(options.folder, options.out)} files noted in {options.out}; write it as files.folder")


def _verify(options: argparse.Namespace) -> int:
    from pipelines.commands.verify import verify
    text, sound = verify(options.names, Path.cwd(), options.quick)
    print(text)
    return 0 if sound else USER_ERROR


def _fetch(options: argparse.Namespace) -> int:
    from pipelines.commands.fetch import fetch_any
    text, whole = fetch_any(options.what, options.out, options.mirror, not options.no_download, options.checksums)
    print(text)
    return 0 if whole else USER_ERROR


def _init(options: argparse.Namespace) -> None:
    from pipelines.commands.init import init
    print(init(options.folder, options.out, options.labels, options.files, options.group, options.label, options.add))


def _doctor(options: argparse.Namespace) -> int:
    from pipelines.commands.doctor import doctor
    text, healthy = doctor()
    print(text)
    return 0 if healthy else USER_ERROR


def _sync(options: argparse.Namespace) -> int:
    from pipelines.tracking.tracking import sync
    sent, left = sync(Path.cwd())
    print(f"sync: {sent} runs sent, {left} left")
    return USER_ERROR if left else 0
