"""The report in a real browser: no error in its console, no missing image, readable at laptop width.

A copy of the page gets a script at its end that measures the page and writes what it found into the document; the
browser prints the document. The same probe has to find fault with broken pages.
"""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.evaluations import noisy_run, write_runs
from tests.helpers import run_script

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTH, HEIGHT = 1280, 800
SMALLEST_TEXT = 11  # CSS pixels
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=20000 --dump-dom"
)
PROBE = """<script>
addEventListener("load", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
  const sizes = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode())
    if (walker.currentNode.data.trim() && walker.currentNode.parentElement.tagName != "SCRIPT")
      sizes.push(parseFloat(getComputedStyle(walker.currentNode.parentElement).fontSize));
  const anchors = [...document.querySelectorAll('nav a')].map(link => link.getAttribute("href"));
  const found = {
    width: document.documentElement.scrollWidth, window: innerWidth, smallest: Math.min(...sizes),
    images: [...document.images].map(image => [image.naturalWidth, Math.round(image.getBoundingClientRect().width)]),
    anchors: anchors, missing: anchors.filter(anchor => !document.querySelector(anchor)),
  };
  const output = document.createElement("pre");
  output.id = "probe";
  output.textContent = JSON.stringify(found);
  document.body.append(output);
});
</script>"""


def judge(name: str, objectives: tuple[str, ...]) -> dict:
    share = {"percent": 40.0, "low": 30.0, "high": 50.0}
    score = {"mean": 0.5, "ci95": 0.1}
    outcomes = {"win": share, "tie": share | {"percent": 20.0}, "lose": share}
    scores = dict.fromkeys(("policy_score", "baseline_score", "relative_score"), score)
    entry = {**scores, **outcomes, "comparisons": 40, "unusable": 0}
    parts = {"policy": name, "baseline": "sft", "judge": "gold scores", "prompts": 40, "rows": []}
    return {**parts, "objectives": dict.fromkeys(objectives, entry)}


def training(offset: float) -> dict[str, list[tuple[int, float]]]:
    """Metrics of twelve steps with every tag that the report draws."""
    steps = range(1, 13)
    names = ("helpfulness", "harmlessness")
    tags = {f"reward/{name}": offset for name in names} | {"kl": 1.0, "response_length": 20.0}
    tags |= {f"coefficient/{name}": 0.5 + offset for name in names} | {f"gradient/norm/{name}": 1.0 for name in names}
    tags |= {"gradient/cosine/helpfulness_harmlessness": -0.3, "lagrangian/multiplier/harmlessness": 1.0}
    return {tag: [(step, value + 0.01 * step) for step in steps] for tag, value in tags.items()}


@pytest.fixture(scope="module")
def full_report(browser: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """report.html of every row of the experiment: two conditions, three fronts, two seeds, judgements, metrics."""
    places = {
        "sft": (0.2, 0.5),
        "ppo_helpfulness": (2.0, -1.0),
        "ppo_harmlessness": (-1.5, 2.9),
        "safe_rlhf": (1.5, 0.0),
        "fast_rl": (0.6, 1.9),
        "morlhf_0.5": (0.7, 2.0),
        "mgda": (0.75, 1.95),
        "gapo_p1": (0.8, 2.05),
        "gapo_p2": (0.65, 1.9),
        **{f"{family}_{weight}": (3 * weight - 1.5, 3 - 4 * weight**2)
           for family in ("p_gapo", "morlhf", "rewarded_soup") for weight in (0.2, 0.4, 0.6, 0.8)},
    }  # fmt: skip
    imbalanced = ("ppo_harmlessness", "safe_rlhf", "fast_rl", "morlhf_0.5", "mgda", "gapo_p1", "gapo_p2")
    scaled = {"algorithm": "gapo", "score_scale": [["harmlessness", 4.0]]}
    runs = []
    for suffix in ("", "#43"):
        for name, place in places.items():
            if name == "sft" and suffix:
                continue
            metrics = {} if name == "sft" or "soup" in name else training(place[0] / 10)
            runs.append(noisy_run(f"{name}{suffix}", place, metrics=metrics))
        for name in imbalanced:
            runs.append(noisy_run(f"{name}@imbalanced{suffix}", places[name][::-1], args=scaled, metrics=training(0.1)))
    root = write_runs(tmp_path_factory.mktemp("browser") / "full", runs)
    (root / "eval" / "judge").mkdir()
    for name in ("gapo_p1", "gapo_p1#43", "mgda", "gapo_p1@imbalanced"):
        content = json.dumps(judge(name, ("helpfulness", "harmlessness")))
        (root / "eval" / "judge" / f"{name}_vs_sft.json").write_text(content)
    return make_report(root)


def make_report(root: Path) -> Path:
    result = run_script("eval/report.py", ["--input_dir", str(root)])
    assert result.code == 0, result.stderr
    return root / "report" / "report.html"


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser on PATH (one of {', '.join(BROWSERS)})")
    return found


def open_page(browser: str, text: str, folder: Path, window: int = WIDTH) -> tuple[dict, list[str]]:
    """(what the probe found, errors in the console) of a page."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "page.html"
    page.write_text(text.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    command = [browser, *OPTIONS.split(), f"--user-data-dir={folder / 'profile'}", f"--window-size={window},{HEIGHT}"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=False)
    probe = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert probe, f"the page was not probed:\n{done.stderr[-2000:]}"
    errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(probe[1])), errors


def find_faults(found: dict, errors: list[str]) -> list[str]:
    """Names of what is wrong with a page."""
    faults = {
        "console": bool(errors),
        "image": any(natural == 0 for natural, _ in found["images"]),
        "overflow": found["width"] > found["window"],
        "small text": found["smallest"] < SMALLEST_TEXT,
        "anchor": bool(found["missing"]),
    }
    return [fault for fault, is_there in faults.items() if is_there]


def test_full_report_in_a_browser(full_report: Path, browser: str, tmp_path: Path):
    found, errors = open_page(browser, full_report.read_text(encoding="utf-8"), tmp_path)
    assert find_faults(found, errors) == [], (found, errors)
    assert found["window"] == WIDTH
    pictures = [path for path in full_report.parent.glob("*.png") if not path.name.startswith("table1")]
    assert len(found["images"]) == len(pictures) == 8
    assert all(shown > 900 for _, shown in found["images"]), "pictures use the width of a laptop"
    assert len(found["anchors"]) == 13
    assert full_report.stat().st_size < 6e6


def test_small_report_in_a_browser(browser: str, tmp_path: Path):
    """Three runs without gold scores, metrics, judgements or seeds, on a narrow window, too."""
    runs = [noisy_run(name, (0.5, 1.0)) for name in ("sft", "morlhf_0.5", "gapo_p1")]
    for run in runs:
        del run.evaluation["gold"]
        for row in run.evaluation["rows"]:
            del row["gold"]
    text = make_report(write_runs(tmp_path / "small", runs)).read_text(encoding="utf-8")
    for window in (WIDTH, 600):
        found, errors = open_page(browser, text, tmp_path / str(window), window)
        assert find_faults(found, errors) == [], (found, errors)
        assert len(found["images"]) == 1


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        ("<script>undefinedFunction();</script>", "console"),
        ('<img src="data:image/png;base64,AAAA">', "image"),
        ('<div style="width: 1500px">wide</div>', "overflow"),
        ('<p style="font-size: 8px">small</p>', "small text"),
        ('<nav><a href="#nowhere">lost</a></nav>', "anchor"),
    ],
)
def test_the_probe_finds_faults(full_report: Path, browser: str, broken: str, fault: str, tmp_path: Path):
    """This fault and no other, in a page whose pictures are a dot each."""
    dot = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
    text = re.sub(r"data:image/png;base64,[^\"]+", dot, full_report.read_text(encoding="utf-8"))
    found, errors = open_page(browser, text.replace("</main>", f"{broken}</main>"), tmp_path)
    assert find_faults(found, errors) == [fault]
