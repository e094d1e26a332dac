"""Blanks and symbols, as all text encoders read them."""

import unicodedata

from tessella.tests.cases import over
from tessella.text.characters import plain, spell_symbols


@over(
    ("text", "expected"),
    [
        ("red apple", "red apple"),
        ("  red \t\r\n apple\x00\x1b\x7f\x85", "red apple"),
        ("red\u00a0\u2003\u2028\u2029\u3000apple", "red apple"),
        ("red\ud83dapple\udc00", "red apple"),
        ("réd 😂", "réd 😂"),
        ("", ""),
        ("\x00\n", ""),
    ],
)
def test_blanks_are_single_spaces(text: str, expected: str) -> None:
    assert plain(text) == expected
    assert plain(plain(text)) == expected


def test_every_control_character_is_white_space() -> None:
    for code in range(0x110000):
        if unicodedata.category(chr(code)) in ("Cc", "Cs", "Zs"):
            assert plain(f"a{chr(code)}b") == "a b", hex(code)


@over(
    ("text", "expected"),
    [
        ("1 + 1 = $2 <3 ^_^", "1 + 1 = $2 <3 ^_^"),
        ("😂", " face with tears of joy "),
        ("♥\ufe0f\u200d", " black heart suit \ufe0f"),
        ("👋🏿", " waving hand sign "),
        ("🇬🇷🇪", " flag gr  regional indicator symbol letter e "),
        ("→©℃", " rightwards arrow  copyright sign  degree celsius "),
        ("a\u200bb\u00adc\ufeffd", "a bcd"),
    ],
)
def test_symbols_are_spelled(text: str, expected: str) -> None:
    assert spell_symbols(text) == expected


def test_every_symbol_of_unicode_has_a_name_in_plain_words() -> None:
    for code in range(0x80, 0x110000):
        if unicodedata.category(chr(code)) in ("So", "Sm"):
            assert spell_symbols(chr(code)).strip().isascii(), hex(code)
            assert spell_symbols(chr(code)).strip(), hex(code)
