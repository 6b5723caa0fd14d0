"""Pictures of a report at 1280 and 400 pixels in a headless chromium, and whether anything sticks out of the page.

    python tests/look_report.py [<report.html>]

Without a page: one with the deck's temperature table, failed cells, plots. Writes build/look/<width>.png; fails where
the page is wider than the window, and where there is no chromium.
"""

import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from html import escape, unescape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kdlab.report.__main__ import main as report
from tests.report_runs import Runs

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "look"
WIDTHS = (1280, 400)
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# A frame of that width: chromium's own window cannot be narrower than about 500 pixels.
FRAME = """<!DOCTYPE html><body style="margin:0">
<iframe id="page" srcdoc="{page}" style="border:0;width:{width}px;height:{height}px"></iframe>
<pre id="found" hidden></pre><script>
document.getElementById("page").onload = function () {{
  const root = this.contentDocument.documentElement, inside = [...root.querySelectorAll("body *")];
  const scrolls = e => e.closest(".wide") !== null && !e.classList.contains("wide");
  const out = inside.filter(e => !scrolls(e) && e.getBoundingClientRect().right > {width} + 1);
  const told = out.slice(0, 5).map(e => e.outerHTML.slice(0, 80));
  const found = {{width: root.scrollWidth, height: root.scrollHeight, out: told}};
  document.getElementById("found").textContent = JSON.stringify(found);
}};
</script></body>"""


def example():
    """The report of a grid like the deck's, three seeds, with training curves, a failed and a missing point."""
    shutil.rmtree(OUT, ignore_errors=True)
    draw, runs, folder = random.Random(1), Runs(OUT), OUT / "hinton_1x1_wmt20"
    shutil.copytree(ROOT / "experiments" / folder.name, folder)
    for student, level in (("slim_1x1", 25.0), ("wide_1x1", 33.0)):
        for seed in (1, 2, 3):
            alone = level + draw.gauss(0, 0.2)
            for temperature in (0.5, 1.0, 2.0, 5.0, 10.0):
                for nll in (0.0, 1.0):
                    bleu = level + 1.5 * nll - 9 * math.log10(temperature) ** 2 + draw.gauss(0, 0.3)
                    failed = seed == 3 and temperature == 10.0
                    runs.add(
                        folder.name,
                        student=student,
                        seed=seed,
                        temperature=temperature,
                        weights={"nll": nll, "kd": 1.0},
                        scores=None if failed else {"wmt20": bleu},
                        alone={"wmt20": alone},
                        teacher={"wmt20": 40.1},
                        error="UserError: the disk of the store is full" if failed and nll else None,
                        curve=[bleu * (1 - math.exp(-step / 6)) for step in range(30)],
                        speed=400.0 if student == "slim_1x1" else 150.0,
                    )
    assert report([str(folder), f"runs={OUT / 'runs'}"]) == 0
    return folder / "report.html"


def chromium(*arguments):
    """What chromium prints."""
    found = os.environ.get("CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        sys.exit("no chromium is installed; install one, or write CHROMIUM=<its program>")
    always = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=5000")
    return subprocess.run([found, *always, *arguments], capture_output=True, text=True, check=True).stdout


def main():
    """1 where something sticks out."""
    page = Path(sys.argv[1]) if len(sys.argv) > 1 else example()
    OUT.mkdir(parents=True, exist_ok=True)
    failed, text = False, page.read_text(encoding="utf-8")
    for width in WIDTHS:
        frame, height = OUT / f"{width}.html", 1000
        for _ in range(2):  # first to know how high it is
            frame.write_text(FRAME.format(page=escape(text, quote=True), width=width, height=height), encoding="utf-8")
            dom = chromium("--dump-dom", f"--window-size={max(width, 600)},{height}", frame.as_uri())
            found = json.loads(unescape(re.search(r'<pre id="found"[^>]*>(.*?)</pre>', dom, re.S)[1]))
            height = found["height"] + 20
        picture = OUT / f"{width}.png"
        chromium(f"--screenshot={picture}", f"--window-size={max(width, 600)},{height}", frame.as_uri())
        failed |= found["width"] > width or bool(found["out"])
        print(
            f"{picture}: {found['width']} of {width} pixels wide, {found['height']} high, sticking out: {found['out']}"
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
