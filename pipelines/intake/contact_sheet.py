"""One picture of what was ingested: samples of every split with their labels, to be looked at before anything is
trained."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from domains.contract import Contract
from domains.publish import write_bytes
from domains.store import Prepared

Picture = Callable[..., np.ndarray]
"""domains/*/picture.py: (values, contract) -> uint8 H W 3."""

COLUMNS, CELL, CAPTION, GAP = 6, 160, 26, 6
BACKGROUND, INK = (24, 24, 24), (230, 230, 230)


def draw(prepared: Prepared, picture: Picture, path: Path, num: int = 24) -> list[int]:
    """Write a PNG with `num` samples spread over splits, sources and labels. Returns the rows that are shown."""
    from PIL import Image, ImageDraw

    rows = choose(prepared, num)
    images = [Image.fromarray(picture(np.asarray(prepared.values(i)), prepared.contract)) for i in rows]
    # Three planes side by side get the room of three.
    breadth = max(1, round(float(np.median([image.width / image.height for image in images])))) if images else 1
    width, columns = CELL * breadth, max(1, COLUMNS // breadth)
    images = [_scaled(image, width) for image in images]
    height = max((image.height for image in images), default=0)
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, -(-len(rows) // columns) * (height + CAPTION + GAP) + GAP),
                      BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    for n, (i, image) in enumerate(zip(rows, images, strict=True)):
        left, top = GAP + n % columns * (width + GAP), GAP + n // columns * (height + CAPTION + GAP)
        sheet.paste(image, (left + (width - image.width) // 2, top + (height - image.height) // 2))
        for line, text in enumerate(captions(prepared, i)):
            pen.text((left, top + height + line * CAPTION // 2), _fitting(text, width), INK)
    content = io.BytesIO()
    sheet.save(content, format="PNG")
    write_bytes(path, content.getvalue())
    return rows


def _scaled(image: Any, width: int) -> Any:
    from PIL import Image

    scale = min(width / image.width, CELL / image.height)
    # Enlarged pixels stay square, so that a small tile is not mistaken for a blurred one.
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))),
                        Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)


def choose(prepared: Prepared, num: int) -> list[int]:
    """Rows from every split and source in turn, and within each from every class of the first task in turn."""
    order = ("train", "val", "test", "unlabelled")
    places: dict[tuple[str, str], dict[str, list[int]]] = {}
    captions_of = [caption_of(prepared, i) for i in range(len(prepared))]
    for i, (split, source) in enumerate(zip(prepared.column("split"), prepared.column("source"), strict=True)):
        places.setdefault((split, source), {}).setdefault(captions_of[i], []).append(i)
    in_turn = sorted(places, key=lambda place: (order.index(place[0]), place[1]))
    taken = _in_turn([_in_turn([_spread(rows, num) for _, rows in sorted(places[place].items())]) for place in in_turn])
    place_of = list(zip(prepared.column("split"), prepared.column("source"), strict=True))
    return sorted(taken[:num], key=lambda i: (in_turn.index(place_of[i]), captions_of[i], i))


def _in_turn(queues: list[list[int]]) -> list[int]:
    """The first of every queue, then the second of every queue, and so on."""
    return [queue[depth] for depth in range(max(map(len, queues), default=0)) for queue in queues if depth < len(queue)]


def _spread(rows: list[int], num: int) -> list[int]:
    return [rows[k] for k in np.unique(np.linspace(0, len(rows) - 1, min(num, len(rows))).astype(int))]


def captions(prepared: Prepared, i: int) -> tuple[str, str]:
    """Two lines below a sample: where it belongs, and what its labels say."""
    return f"{prepared.column('split')[i]} {prepared.column('source')[i]}".strip(), caption_of(prepared, i)


def caption_of(prepared: Prepared, i: int) -> str:
    """The label of the first task as text; "?" where unknown."""
    contract: Contract = prepared.contract
    if not contract.tasks:
        return ""
    name, task = next(iter(contract.tasks.items()))
    values = prepared.labels(name)[i]
    if not np.isfinite(values).any():
        return "?"
    if task.kind == "single_label":
        return f"{name}: {task.classes[int(values[0])]}"
    if task.kind == "multi_label":
        return ", ".join(column for column, value in zip(task.columns, values, strict=True) if value == 1) or "none"
    if task.kind == "segmentation":
        held = np.isin(np.arange(1, len(task.classes)), task.class_of()[prepared.mask(i)])
        return ", ".join(name for name, there in zip(task.outputs, held, strict=True) if there) or "none"
    return ", ".join(f"{value:g}" for value in values)


def _fitting(text: str, width: int) -> str:
    # The built-in font is 6 pixels wide; a longer caption would run into the next sample.
    most = width // 6
    return text if len(text) <= most else text[:most - 1] + "…"
