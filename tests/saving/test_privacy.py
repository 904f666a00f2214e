"""What is written to be handed on says nothing about the machine, its user, or the token."""

import json
import os
import socket

import pytest

from optimum_moreau.data.sources import model_reference

SECRET = "hf_madeUpSecretOfNobody"
PLAIN = (
    "--preset plain --criterion taylor --calibration-samples 2 --seq-len 16 --calibration text.txt --evaluate text.txt"
)
TUNING = "--data records.jsonl --max-steps 2 --save-steps 1 --batch-size 2 --validation 0.3 --seq-len 64"
LINES = (
    f"prune base/tiny -o stock --unit-ratio 0.5 --attention-layers 0:3 --mlp-layers 0:3 {PLAIN}",
    f"prune base/tiny -o own --unit-ratio 0.5 --compensation bias --compensation-samples 2 {PLAIN}",
    f"prune base/tiny -o mask --pattern 2:4 {PLAIN}",
    "plan base/tiny -o plan.json --preset plain --criterion magnitude --unit-ratio 0.5",
    "apply plan.json base/tiny -o applied",
    f"recover {{home}}/stock -o tuned --teacher base/tiny {TUNING}",
    f"recover mask -o {{home}}/tuned-mask {TUNING}",
    "recover {home}/stock --adapter {home}/tuned/adapter -o merged",
    "evaluate {home}/own --text {home}/text.txt --max-segments 2 --baseline {home}/base/tiny --save",
    "robustness {home}/base/tiny -o robustness --criteria magnitude --perturbations bf16 --ratio 0.05",
    "insight {home}/base/tiny -o insight --criteria magnitude --figures layers --ratio 0.1 --layers 1"
    " --evaluate {home}/text.txt --max-segments 2",
    "report {home}/stock own -o report.html --evidence {home}/insight --base {home}/base/tiny --new-tokens 2",
)


def home_of(tmp_path, monkeypatch, tiny_folder, text):
    home = tmp_path / "home" / "ada.lovelace"
    (home / "base").mkdir(parents=True)
    (home / "base" / "tiny").symlink_to(tiny_folder)
    (home / "text.txt").write_text(text)
    (home / "records.jsonl").write_text("".join(json.dumps({"text": f"A small text, {i}."}) + "\n" for i in range(8)))
    for name, value in {
        "HOME": str(home),
        "USER": "ada.lovelace",
        "LOGNAME": "ada.lovelace",
        "HF_TOKEN": SECRET,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("socket.gethostname", lambda: "ada-laptop")
    monkeypatch.setattr("os.uname", lambda: os.uname_result(("Linux", "ada-laptop", "1", "1", "x86_64")))
    monkeypatch.chdir(home)
    return home


def test_no_byte_of_what_is_saved_tells_of_the_machine(tiny_folder, tmp_path, text, unverified, monkeypatch, command):
    pytest.importorskip("matplotlib")
    real = socket.gethostname()
    home = home_of(tmp_path, monkeypatch, tiny_folder, text)
    for line in LINES:
        code, _, err = command(*line.format(home=home).split())
        assert code == 0, (line, err)
    secrets = ["ada.lovelace", "ada-laptop", SECRET, str(tmp_path), str(tiny_folder.parent)]
    secrets += [real] if len(real) > 7 else []  # a shorter name occurs by chance
    inputs = {"text.txt", "records.jsonl"}
    written = [path for path in home.rglob("*") if path.is_file() and path.name not in inputs]
    assert len({path.parent for path in written}) > 9
    for path in written:
        found = [secret for secret in secrets if secret.encode() in path.read_bytes()]
        assert not found, (path.relative_to(home), found)
    for folder, base in {"tuned": "stock", "tuned-mask": "mask", "merged": "stock"}.items():
        config = json.loads((home / folder / "adapter" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == base
        names = {path.name for path in (home / folder).rglob("*") if path.is_file()}
        assert not names & {"trainer_state.json", "optimizer.pt", "training_args.bin", "rng_state.pth", "scheduler.pt"}
    assert not [path for path in home.iterdir() if path.name.startswith(".") and path.name != ".cache"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/model", "org/model"),
        ("gpt2", "gpt2"),
        ("/home/ada/models/mine", "mine"),
        ("C:\\Users\\ada\\mine", "mine"),
        ("~/mine", "mine"),
        ("../mine", "mine"),
        ("./mine", "mine"),
        ("a/b/mine", "mine"),
        ("", None),
    ],
)
def test_a_model_is_named_by_its_id_or_by_its_folders_last_name(name, expected):
    assert model_reference(name) == expected
