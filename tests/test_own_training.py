"""The loop in docs/own_training.md runs as it stands there, and learns."""

import re
from pathlib import Path
from typing import Any

import pytest

import tessella

PAGE = Path(tessella.__file__).parent / "docs" / "own_training.md"


def test_the_loop_of_the_page_trains_and_saves_a_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    losses, tokens = names["losses"], names["tokens"]
    assert len(losses) == 32 and sum(losses[-4:]) < 0.9 * sum(losses[:4])
    assert tokens.indices.shape == (4, 16, 8) and tokens.spec == names["tokenizer"].spec
