"""The closed list of text encoders."""

from typing import Any, cast

import pytest

from tessella.building import TooLarge
from tessella.config import ConfigError, build_config
from tessella.text.build import TextEncoderConfig, build_text_encoder
from tessella.text.byte_text import BytesConfig, BytesEncoder
from tessella.text.minilm import MiniLMConfig
from tessella.text.words import WordsConfig, WordsEncoder


def config_of(**data: Any) -> Any:
    return build_config(cast(Any, TextEncoderConfig), data, name="text")


def test_configs_are_told_apart_by_their_type() -> None:
    assert config_of(type="words") == WordsConfig(max_length=32)
    assert config_of(type="minilm", max_length=8) == MiniLMConfig(max_length=8)
    assert config_of(type="bytes", width=64) == BytesConfig(width=64)


def test_encoders_are_built() -> None:
    words, letters = (
        build_text_encoder(WordsConfig(max_length=5)),
        build_text_encoder(BytesConfig(width=64)),
    )
    assert isinstance(words, WordsEncoder)
    assert (words.name, words.dim, words.max_length) == ("words", 96, 5)
    assert isinstance(letters, BytesEncoder)
    assert (letters.name, letters.dim, letters.max_length) == ("bytes", 64, 160)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"type": "word"}, "words"),
        ({"type": "words", "max_length": 0}, "max_length: expected 1 to 4,096 tokens, found 0"),
        ({"type": "minilm", "max_length": 511}, "max_length: expected 1 to 510 tokens, found 511"),
        ({"type": "words", "width": 3}, "width"),
        ({"type": "words", "max_length": "32"}, "max_length"),
    ],
)
def test_other_configs_are_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(**data)


def test_a_network_that_no_machine_holds_is_refused() -> None:
    with pytest.raises(TooLarge, match="GB"):
        build_text_encoder(BytesConfig(width=2**20, num_layers=4))
