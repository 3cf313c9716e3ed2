"""How much burned-in text is flagged, and how many films without any: `python -m benchmarks.faults.burned_in`.

Lines of text in five fonts, sizes, greys and corners are drawn on real films, which are saved as JPEG and read again. A
line counts as found when a box of the detector touches it. Text is told apart by how far it stands out from the film
under it: white print on white bone hides no name. Needs the films of LACUNA_SHARED, pillow and matplotlib's fonts.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from domains.medical.burned_in import lines_of_text

FONTS = ("DejaVuSans.ttf", "DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSans-Bold.ttf")
SIZES = (8, 10, 12, 16, 24)
"""Points, on films of about 256 pixels: 24 is a tenth of the film."""
GREYS = (255, 200, 0)
TEXTS = ("DOE^JANE 19610203", "MRN 4471190", "SMITH JOHN", "ID:882-19-443", "ACC 20231107", "Geb. 03.02.1961")
FAINT, CLEAR = 40, 90
"""Difference of grey from the film under the line (of 255): below the first a person hardly sees it."""
QUALITY = 90


def planted(film: np.ndarray, draw: random.Random, size: int, grey: int) -> tuple[np.ndarray, Sequence[int], float]:
    """The film with a line of text after a JPEG, the line's box (top, left, bottom, right), and how far it stands
    out."""
    text = draw.choice(TEXTS)
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf" / draw.choice(FONTS)), size)
    picture = Image.fromarray(film.copy())
    pen = ImageDraw.Draw(picture)
    width, height = (int(n) for n in pen.textbbox((0, 0), text, font=font)[2:])
    x = draw.choice((4, max(4, film.shape[1] - width - 4)))
    y = draw.choice((4, film.shape[0] - height - 4))
    pen.text((x, y), text, fill=grey, font=font)
    under = film[y:y + height, x:x + width].astype(float)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=QUALITY)
    return np.asarray(Image.open(stream)), (y, x, y + height, x + width), float(np.median(np.abs(under - grey)))


def found(film: np.ndarray, line: Sequence[int]) -> bool:
    """Whether a box of the detector touches the line's."""
    top, left, bottom, right = line
    return any(box[0] < bottom and box[2] > top and box[1] < right and box[3] > left
               for box in lines_of_text(film / 255.0))


def main() -> None:
    """Print flagged films and recall, by source."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--films", type=int, default=400, help="real films of each source, as they are")
    options.add_argument("--lines", type=int, default=60, help="lines of text of each size and grey")
    options.add_argument("--boxes", type=Path, help="write the films that were flagged, with boxes, into this folder")
    given = options.parse_args()
    shared = Path(os.environ["LACUNA_SHARED"]) / "data"
    with (shared / "cxr/labels.csv").open(newline="", encoding="utf-8") as file:
        by_source: dict[str, list[Path]] = defaultdict(list)
        for row in csv.DictReader(file):
            by_source[row["source"]].append(shared / row["path"])
    for source, paths in sorted(by_source.items()):
        draw = random.Random(0)
        films = [np.asarray(Image.open(path).convert("L")) for path in draw.sample(paths, min(given.films, len(paths)))]
        began = time.process_time()
        boxes = [lines_of_text(film / 255.0) for film in films]
        cost = (time.process_time() - began) / len(films)
        print(f"{source}: {sum(map(bool, boxes))} of {len(films)} films flagged as they are, {1000 * cost:.1f} ms each")
        if given.boxes:
            _draw(films, boxes, given.boxes / source)
        _recall(films, draw, given.lines)


def _recall(films: Sequence[np.ndarray], draw: random.Random, count: int) -> None:
    tally: dict[tuple[str, object], list[bool]] = defaultdict(list)
    for size in SIZES:
        for grey in GREYS:
            for _ in range(count):
                film, line, contrast = planted(draw.choice(films), draw, size, grey)
                hit = found(film, line)
                how = "faint" if contrast < FAINT else "visible" if contrast < CLEAR else "clear"
                tally["contrast", how].append(hit)
                if how != "faint":
                    tally["size", size].append(hit)
                    tally["grey", grey].append(hit)
    for (what, value), hits in sorted(tally.items(), key=str):
        print(f"  {what} {value}: {sum(hits)} of {len(hits)} lines found ({sum(hits) / len(hits):.0%})")


def _draw(films: Sequence[np.ndarray], boxes: Sequence[Sequence[tuple[int, ...]]], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, (film, of_film) in enumerate(zip(films, boxes, strict=True)):
        if of_film:
            picture = Image.fromarray(film).convert("RGB")
            for top, left, bottom, right in of_film:
                ImageDraw.Draw(picture).rectangle((left - 2, top - 2, right + 1, bottom + 1), outline=(255, 0, 0))
            picture.save(folder / f"{i}.png")


if __name__ == "__main__":
    main()
