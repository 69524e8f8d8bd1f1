"""Texts from files in a line."""

from __future__ import annotations

from dekr_infer.errors import excerpt, one_line


def test_what_a_terminal_acts_on_is_spelt_out_and_lines_become_one():
    assert one_line("a\n\tb\r\u2028c ") == "a b c"
    assert one_line("\x1b[2J\x00\u202e\ud800") == r"\x1b[2J\x00\u202e\ud800"
    assert one_line("\N{LATIN SMALL LETTER E WITH ACUTE} 图") == "\N{LATIN SMALL LETTER E WITH ACUTE} 图"


def test_an_excerpt_is_the_beginning_and_never_fails():
    assert excerpt({"a": "b" * 200}) == "{'a': '" + 73 * "b" and excerpt([1, 2], 3) == "[1,"
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    assert excerpt(deep) == "nested too deep to print"
