"""The report: one page that holds all it shows, says what is on record, and is quiet in a real browser."""

import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from optimum_moreau.loading import load_model, load_tokenizer
from optimum_moreau.saving.records import Records
from tests.tiny import tiny_model

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "br", "img", "link", "hr", "input", "path", "use", "image", "rect"}
PROMPT = "The <b>quick</b> & brown"


@pytest.fixture(scope="module")
def report(tmp_path_factory, folders, tiny_folder, text):
    """A page about two pruned models, with evidence and generations."""
    from optimum_moreau.cli import main

    work = tmp_path_factory.mktemp("report")
    (work / "text.txt").write_text(text)
    common = ["--calibration", str(work / "text.txt"), "--samples", "2", "--seq-len", "16"]
    compared = ["--criteria", "taylor", "--perturbations", "bf16,seeds:2", "-o", str(work / "seen")]
    assert main(["robustness", str(tiny_folder), *common, *compared]) == 0
    drawn = ["--criteria", "taylor,magnitude", "--figures", "ranking,map", "-o", str(work / "seen")]
    assert main(["insight", str(tiny_folder), *common, *drawn]) == 0
    both = [str(folders[kind]) for kind in ("own", "stock")]
    shown = ["--evidence", str(work / "seen"), "--base", str(tiny_folder), "--prompt", PROMPT, "--new-tokens", "8"]
    assert main(["report", *both, "-o", str(work / "report.html"), *shown]) == 0
    return work / "report.html"


class Outline(HTMLParser):
    """Reads a page strictly: every element is closed in order; notes what tests ask for."""

    def __init__(self, page):
        super().__init__()
        self.open, self.seen, self.headings = [], [], []
        self.feed(page)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs), list(self.open)))
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs), list(self.open)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def all(self, tag):
        return [attrs for name, attrs, _ in self.seen if name == tag]


@pytest.fixture(scope="module")
def outline(report):
    return Outline(report.read_text(encoding="utf-8"))


def test_the_page_loads_nothing(report, outline):
    page = report.read_text(encoding="utf-8")
    assert not outline.all("script") and not outline.all("link") and not outline.all("iframe")
    addresses = [
        value for _, attrs, _ in outline.seen for name, value in attrs.items() if name in ("src", "href", "xlink:href")
    ]
    assert addresses and all(address.startswith(("#", "data:")) for address in addresses)
    assert "url(http" not in page and "@import" not in page


def test_the_page_names_no_folder_of_this_machine(report, folders, tiny_folder):
    page = report.read_text(encoding="utf-8")
    for folder in (*folders.values(), tiny_folder, report):
        assert str(folder.parent) not in page


def test_the_page_can_be_heard_and_walked(outline):
    assert outline.all("html")[0]["lang"] == "en" and outline.all("title")
    assert outline.headings[0] == 1 and outline.headings.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(outline.headings, outline.headings[1:], strict=False))
    drawings = [attrs for tag, attrs, above in outline.seen if tag == "svg"]
    assert len(drawings) == 6 and all(one["role"] == "img" and len(one["aria-label"]) > 10 for one in drawings)
    tables = [i for i, (tag, _, _) in enumerate(outline.seen) if tag == "table"]
    assert tables and all(outline.seen[i + 1][0] == "caption" for i in tables)
    assert all(attrs.get("scope") in ("col", "row") for attrs in outline.all("th"))
    ids = [attrs["id"] for _, attrs, above in outline.seen if attrs.get("id") and "svg" not in above]
    assert len(ids) == len(set(ids))
    links = [attrs["href"][1:] for attrs in outline.all("a")]
    assert set(links) <= set(ids) and {"main", "summary", "layers", "robustness", "figures", "plan"} <= set(links)
    scrolled = [attrs for attrs in outline.all("div") if attrs.get("class") == "wide"]
    assert all(attrs["tabindex"] == "0" and attrs["aria-label"] for attrs in scrolled)  # reachable by keyboard


def test_the_page_says_what_is_on_record(report, folders):
    page = report.read_text(encoding="utf-8")
    for kind, folder in folders.items():
        summary = Records.load(folder).summary
        assert f'<th scope="col">{kind}</th>' in page
        assert f"<td>{summary.parameters_before:,} → {summary.parameters_after:,}</td>" in page
        assert f"<td>{summary.export}</td>" in page
    agreements = json.loads((report.parent / "seen" / "robustness.json").read_text())
    for one in agreements["agreements"]:
        spread = f" ± {one['removed_deviation']:.3f}" if one["pairs"] > 1 else ""
        assert f"{one['removed']:.3f}{spread}</td>" in page
    (verdict,) = agreements["verdicts"]
    assert f'<p class="verdict">{verdict}.</p>' in page
    assert "of the units removed, fp32 and bf16 share" in verdict and "two calibration draws" in verdict


def test_the_summary_says_what_decided_and_how_to_measure_what_was_not(command, folders, tmp_path):
    arguments = ("report", folders["stock"], "-o", tmp_path / "report.html", "--no-generate")
    code, out, err = command(*arguments)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert code == 0 and 'href="#quality"' not in page, err
    summary = Records.load(folders["stock"]).summary
    assert '<tr><th scope="row">budget</th><td>uniform</td></tr>' in page
    assert f'<tr><th scope="row">compensation</th><td>{summary.compensation.get("step", "none")}</td></tr>' in page
    assert "<code>optimum-moreau evaluate stock --baseline BASE --text TEXT --save</code>" in page
    assert f"optimum-moreau evaluate {folders['stock']} --baseline BASE --text TEXT --save" in out
    folder = shutil.copytree(folders["stock"], tmp_path / "measured")
    (tmp_path / "text.txt").write_text("Once upon a time there was a house. " * 40)
    assert command("evaluate", folder, "--text", tmp_path / "text.txt", "--save", "--seq-len", "16")[0] == 0
    code, out, err = command(*arguments[:1], folder, *arguments[2:], "--overwrite")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert code == 0 and 'href="#quality"' in page and "not measured" not in page + out, err


def written_by(folder):
    """What a model writes after the prompt, by a loop of plain forward passes."""
    model, tokenizer = load_model(str(folder), device="cpu"), load_tokenizer(str(folder))
    ids = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)["input_ids"]
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(8):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
            if ids[0, -1] == model.config.eos_token_id:
                break
    return tokenizer.decode(ids[0, start:], skip_special_tokens=True)


def test_what_models_write_stands_under_their_names_and_is_no_markup(report, folders, tiny_folder):
    page = report.read_text(encoding="utf-8")
    assert "The &lt;b&gt;quick&lt;/b&gt; &amp; brown" in page and PROMPT not in page
    pairs = [(name, unescape(text)) for name, text in re.findall(r"<h4>(.*?)</h4><p>(.*?)</p>", page, re.S)]
    expected = {"tiny-llama, unpruned": tiny_folder, **folders}
    assert pairs == [(name, written_by(folder)) for name, folder in expected.items()]
    assert len({text for _, text in pairs}) > 1


def test_models_and_texts_of_one_name_are_told_apart(command, folders, tmp_path, text):
    """Two folders of one name, measured on two different files of one name."""
    for parent, kind in (("a", "own"), ("b", "stock")):
        (tmp_path / parent).mkdir()
        shutil.copytree(folders[kind], tmp_path / parent / "pruned")
        (tmp_path / parent / "text.txt").write_text(text[: 4000 if parent == "a" else 6000])
        flags = ("--text", tmp_path / parent / "text.txt", "--save", "--seq-len", "16")
        assert command("evaluate", tmp_path / parent / "pruned", *flags)[0] == 0
    models = [tmp_path / parent / "pruned" for parent in "ab"]
    page = tmp_path / "report.html"
    code, _, err = command("report", *models, "-o", page, "--prompt", PROMPT, "--new-tokens", "8")
    assert code == 0, err
    shown = page.read_text(encoding="utf-8")
    assert '<th scope="col">a/pruned</th><th scope="col">b/pruned</th>' in shown
    for place, folder in enumerate(models):
        (measured,) = Records.load(folder).measurements
        cells = ["<td>not measured</td>"] * 2
        cells[place] = f"<td>pruned {measured.value:.4f}</td>"
        assert f"text {measured.sha256[:8]}</th>{''.join(cells)}" in shown
    pairs = [(name, unescape(text)) for name, text in re.findall(r"<h4>(.*?)</h4><p>(.*?)</p>", shown, re.S)]
    assert pairs == [("a/pruned", written_by(models[0])), ("b/pruned", written_by(models[1]))]
    code, _, err = command("report", models[0], models[0], "-o", tmp_path / "twice.html")
    assert code == 2 and "pruned: is given twice" in err


# In a browser


def browse(page, picture, *flags):
    """Opens a page without a network; returns what the console said."""
    quiet = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ]
    window = ["--window-size=1000,2400", "--enable-logging=stderr", f"--screenshot={picture}"]
    profile = f"--user-data-dir={picture.parent / 'profile'}"
    done = subprocess.run(
        [BROWSER, *quiet, *window, profile, *flags, page.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and picture.is_file(), done.stderr
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def brightness(picture):
    with Image.open(picture) as found:
        grey = found.convert("L")
        return sum(grey.tobytes()) / (grey.width * grey.height), len(set(grey.tobytes()))


@pytest.mark.skipif(
    BROWSER is None, reason="no chromium here: the page is not tested in a browser (.ci/run installs it)"
)
def test_a_browser_shows_the_page_light_and_dark_without_a_word(report, tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text("<script>console.error('heard')</script>")
    assert any("heard" in line for line in browse(broken, tmp_path / "broken.png"))  # a word would be heard
    assert not browse(report, tmp_path / "light.png")
    assert not browse(report, tmp_path / "dark.png", "--blink-settings=preferredColorScheme=0")
    (light, shades), (dark, dark_shades) = brightness(tmp_path / "light.png"), brightness(tmp_path / "dark.png")
    assert light > 180 and dark < 80 and min(shades, dark_shades) > 50


# What is asked wrongly


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{tiny}",), "holds no pruning_plan.json; give a folder that prune or apply wrote"),
        (("{out}/missing",), "missing: no such folder"),
        (("{own}", "--evidence", "{tiny}"), "holds neither robustness.json nor insight.json"),
        (("{own}", "--new-tokens", "0"), "--new-tokens: 0 is not a whole number"),
        (("{own}", "--prompt", ""), "prompt: '' has no tokens"),
        (("{own}", "--base", "{other}"), "tokenizer"),
        (("{own}", "--base", "{stranger}"), "stranger: is not the model this was pruned from (tiny-llama)"),
        (("{own}", "--evidence", "{foreign}"), "is about stranger, from which none of the models here was pruned"),
        (("{own}", "{stock}", "-o", "{tiny}"), "is a folder; give a file"),
    ],
    ids=str,
)
def test_what_cannot_be_reported_is_refused(
    arguments, message, command, folders, tiny_folder, other_tokenizer, stranger, tmp_path
):
    places = {**folders, "tiny": tiny_folder, "out": tmp_path, "other": other_tokenizer, **stranger}
    given = [part.format(**places) for part in arguments]
    output = [] if "-o" in given else ["-o", tmp_path / "report.html"]
    code, out, err = command("report", *given, *output)
    assert (code, out) == (2, "") and message in err, err
    assert not (tmp_path / "report.html").exists()


@pytest.fixture(scope="session")
def other_tokenizer(tmp_path_factory, tiny_folder, tokenizer):
    """The tiny model with a tokenizer that numbers one more token."""
    folder = tmp_path_factory.mktemp("other") / "other"
    shutil.copytree(tiny_folder, folder)
    other = load_tokenizer(str(folder))
    other.add_tokens(["<more>"])
    other.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def stranger(tmp_path_factory, tiny_folder, tokenizer):
    """Another model with the same tokenizer, and evidence of it."""
    from optimum_moreau.cli import main

    folder = tmp_path_factory.mktemp("strange")
    tiny_model("llama", vocab_size=len(tokenizer), seed=1).save_pretrained(folder / "stranger")
    tokenizer.save_pretrained(folder / "stranger")
    compared = ["--criteria", "magnitude", "--perturbations", "bf16", "-o", str(folder / "seen")]
    assert main(["robustness", str(folder / "stranger"), *compared]) == 0
    return {"stranger": folder / "stranger", "foreign": folder / "seen"}


def test_a_page_that_is_there_is_replaced_only_when_asked(command, folders, tmp_path):
    page = tmp_path / "report.html"
    page.write_text("mine")
    arguments = ("report", folders["stock"], "-o", page, "--no-generate")
    code, _, err = command(*arguments)
    assert code == 2 and "exists" in err and page.read_text() == "mine"
    code, out, _ = command(*arguments, "--overwrite", "--json")
    assert code == 0 and json.loads(out)["generations"] == [] and "stock, pruned" in page.read_text()


@pytest.mark.parametrize(
    "content",
    [
        b'{"model": "x", "fingerprint": "", "agreements": [{"kept": 1}]}',
        b'{"model": "x", "agreements": []}',
        b"[]",
        b"\xff\xfe",
        b"{",
    ],
)
def test_damaged_evidence_is_named(content, command, folders, tmp_path):
    (tmp_path / "evidence").mkdir()
    (tmp_path / "evidence" / "robustness.json").write_bytes(content)
    code, _, err = command(
        "report", folders["own"], "--evidence", tmp_path / "evidence", "-o", tmp_path / "report.html"
    )
    assert code == 2 and "robustness.json: cannot be read" in err and not (tmp_path / "report.html").exists()
