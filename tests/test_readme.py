"""The README's example runs as it stands, and its test command is the one that CI runs."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_learns_its_data(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(example.splitlines()) <= 25
    run = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[0] == "Bees carry pollen between flowers"
    assert (tmp_path / "my-model" / "model.safetensors").is_file()


def test_there_is_one_test_command() -> None:
    commands = re.findall(r"<!-- test command -->\n```console\n(.*)\n```", README)
    assert commands == ["pip install -e '.[test]' && python -m pytest"]
