"""The page of the commands says what the commands say themselves."""

import runpy
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_of_the_commands_is_up_to_date():
    script = runpy.run_path(str(DOCS / "commands.py"))
    written = (DOCS / "commands.md").read_text(encoding="utf-8")
    assert script["page"]() == written, "run: python docs/commands.py"


def test_every_flag_and_command_is_on_the_page():
    written = (DOCS / "commands.md").read_text(encoding="utf-8")
    for text in ("## `rustgpt train`", "## `rustgpt tokenizer stats`", "`--max-time TIME`",
                 "`--replay SHARE PATH`", "rustgpt data notes/ questions.jsonl"):  # fmt: skip
        assert text in written
    assert "SUPPRESS" not in written
