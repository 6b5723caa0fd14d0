"""sentences.csv: n-gram counts of every sentence, for the models of the results.csv beside it, so that claims have
p-values where the store is gone and where their runs were made on several machines.

A row is a model on a test set; `bleu` is what BLEU is computed from, packed: sentences in turn, of each the columns of
sacreBLEU (tokens of the translation, of the reference, 1- to 4-grams found, 1- to 4-grams in all). `score` is the BLEU
that they give: a model trained again on another machine has its key, but other counts than results.csv shows.
"""

from __future__ import annotations

import base64
import csv
import io
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from kdlab import files
from kdlab.errors import UserError

FILE = "sentences.csv"
FIELDS = ["key", "test", "score", "bleu"]
COLUMNS, WIDTH = 10, 2  # numbers of a sentence, bytes of a number
Statistics = list[list[int]]
Place = tuple[str, str, float | None]  # a model, a test set, and its BLEU there


def pack(statistics: Sequence[Sequence[int]]) -> str:
    """Counts as text. The number of n-grams follows from that of tokens, so that only what differs costs space."""
    columns = zip(*(_less(sentence) for sentence in statistics), strict=True)
    numbers = (count % 2 ** (8 * WIDTH) for column in columns for count in column)
    return base64.b85encode(zlib.compress(b"".join(n.to_bytes(WIDTH, "little") for n in numbers), 9)).decode("ascii")


def unpack(text: str) -> Statistics:
    """What `pack` was given. Raises: UserError for other text."""
    try:
        data = zlib.decompress(base64.b85decode(text))
        numbers = [int.from_bytes(data[at : at + WIDTH], "little") for at in range(0, len(data), WIDTH)]
        count = len(numbers) // COLUMNS
        columns = [numbers[at * count : (at + 1) * count] for at in range(COLUMNS)]
        return [_more(sentence) for sentence in zip(*columns, strict=True)]
    except (zlib.error, ValueError) as error:
        raise UserError(f"a {FILE} holds counts that cannot be unpacked ({error}); restore it from git") from error


def read(folder: Path) -> dict[Place, str]:
    """Packed counts; none where there is no such file. Raises: UserError."""
    path = folder / FILE
    if not path.exists():
        return {}
    csv.field_size_limit(1 << 27)  # its own limit is 27,000 sentences
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != FIELDS:
            raise UserError(f"{path} has other columns than {', '.join(FIELDS)}; restore it from git")
        return {(row["key"], row["test"], float(row["score"])): row["bleu"] for row in reader}


def update(folder: Path, found: Mapping[Place, Path | str], shown: Collection[Place]) -> None:
    """Adds what is new of the models that results.csv shows, and leaves out what is of others.

    Args:
        found: <test>.statistics.json (passed over where it does not exist) or packed counts.
    """
    before = read(folder)
    known = {place: text for place, text in before.items() if place in shown}
    for place in sorted(place for place in found if place in shown and place not in known):
        one = found[place]
        if isinstance(one, str) or one.exists():
            known[place] = one if isinstance(one, str) else pack(files.read_json(one)["bleu"])
    if known == before:
        return
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(FIELDS)
    writer.writerows([*place, packed] for place, packed in known.items())
    files.write_text(folder / FILE, out.getvalue())


def _usual(num_tokens: int) -> list[int]:
    return [max(0, num_tokens - n) for n in range(4)]


def _less(sentence: Sequence[int]) -> list[int]:
    totals = zip(sentence[6:], _usual(sentence[0]), strict=True)
    return [*sentence[:6], *(total - usual for total, usual in totals)]


def _more(sentence: Sequence[int]) -> list[int]:
    totals = zip(sentence[6:], _usual(sentence[0]), strict=True)
    return [*sentence[:6], *((total + usual) % 2 ** (8 * WIDTH) for total, usual in totals)]
