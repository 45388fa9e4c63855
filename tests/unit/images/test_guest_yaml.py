"""The guest's YAML reader: what it understands as YAML does, and what it refuses instead of guessing."""

from __future__ import annotations

import subprocess
from textwrap import dedent
from typing import Protocol

import pytest


class Awk(Protocol):
    def __call__(self, script: str, text: str) -> subprocess.CompletedProcess[str]: ...


UNDERSTOOD = {
    "plain scalars": ("a: b\nc: 1\nd: true\n", {"a": "b", "c": "1", "d": "true"}),
    "null and empty": ("a:\nb: ~\nc: null\nd: ''\n", {"a": "", "b": "", "c": "", "d": ""}),
    "no value at all": ("", {}),
    "only comments": ("# one\n\n  # two\n", {}),
    "comments": ("a: b # not this\n# nor this\nc: d#this\n", {"a": "b", "c": "d#this"}),
    "document markers": ("---\na: b\n...\nanything at all: [\n", {"a": "b"}),
    "carriage returns": ("a: b\r\nc:\r\n  - d\r\n", {"a": "b", "c.0": "d"}),
    "urls and colons": ("a: http://x:80/y\nb: 12:30\n", {"a": "http://x:80/y", "b": "12:30"}),
    "keys with spaces and quotes": ("a b: 1\n'c: d': 2\n\"e\" : 3\n", {"a b": "1", "c: d": "2", "e": "3"}),
    "nested mappings": ("a:\n  b:\n    c: d\n  e: f\ng: h\n", {"a.b.c": "d", "a.e": "f", "g": "h"}),
    "sequences": ("a:\n  - b\n  - c\n", {"a.0": "b", "a.1": "c"}),
    "sequences not indented": ("a:\n- b\n- c\nd: e\n", {"a.0": "b", "a.1": "c", "d": "e"}),
    "sequence at the top": ("- a\n- b: c\n  d: e\n", {"0": "a", "1.b": "c", "1.d": "e"}),
    "sequences in sequences": ("a:\n- - b\n  - c\n-\n  - d\n", {"a.0.0": "b", "a.0.1": "c", "a.1.0": "d"}),
    "mappings in sequences": (
        "a:\n  - b: 1\n    c:\n      - x\n      - y\n  - b: 2\n",
        {"a.0.b": "1", "a.0.c.0": "x", "a.0.c.1": "y", "a.1.b": "2"},
    ),
    "empty items": ("a:\n  -\n  - b\n  -\n", {"a.0": "", "a.1": "b", "a.2": ""}),
    "single quotes": ("a: 'it''s # here'\n", {"a": "it's # here"}),
    "double quotes": (r'a: "t\tq\"b\\n\nu\u00e9x\x41 \/" # c' + "\n", {"a": 't\tq"b\\n\nuéxA /'}),
    "wide characters": (r'a: "\u20ac\U0001f600"' + "\nb: ñ€😀\n", {"a": "€😀", "b": "ñ€😀"}),
    "quotes over lines": ("a: \"one\n  two\n\n  three\"\nb: 'x\n  y'\n", {"a": "one two\nthree", "b": "x y"}),
    "an escaped line end": ('a: "one\\\n  two"\n', {"a": "onetwo"}),
    "plain over lines": ("a: one\n  two\n\n  three\nb: c\n", {"a": "one two\nthree", "b": "c"}),
    "literal": ("a: |\n  one\n    two\n\n  # three\nb: c\n", {"a": "one\n  two\n\n# three\n", "b": "c"}),
    "literal, stripped": ("a: |-\n  one\n\n\nb: c\n", {"a": "one", "b": "c"}),
    "literal, kept": ("a: |+\n  one\n\n\nb: c\n", {"a": "one\n\n\n", "b": "c"}),
    "literal at the end": ("a: |\n  one", {"a": "one\n"}),
    "literal, blank first": ("a: |\n\n  one\n", {"a": "\none\n"}),
    "literal with an indent": ("a: |2\n    one\n  two\n", {"a": "  one\ntwo\n"}),
    "literal, empty": ("a: |\nb: c\n", {"a": "", "b": "c"}),
    "literal in an item": ("- |\n  one\n  two\n- x\n", {"0": "one\ntwo\n", "1": "x"}),
    "literal with tabs": ("a: |\n  \tone\n  two\tx\n", {"a": "\tone\ntwo\tx\n"}),
    "literal of what looks like yaml": ("a: |\n  - b: [\n  ---\n", {"a": "- b: [\n---\n"}),
    "folded": ("a: >\n  one\n  two\n\n  three\n", {"a": "one two\nthree\n"}),
    "folded, more indented": ("a: >-\n  one\n    two\n  three\n", {"a": "one\n  two\nthree"}),
    "flow sequence": ("a: [b, 'c, d', \"e\", 5]\n", {"a.0": "b", "a.1": "c, d", "a.2": "e", "a.3": "5"}),
    "flow over lines": ("a: [b, # one\n  c,\n  d]\ne: f\n", {"a.0": "b", "a.1": "c", "a.2": "d", "e": "f"}),
    "flow in flow": ("a: [[b], {c: d, 'e': [f]}]\n", {"a.0.0": "b", "a.1.c": "d", "a.1.e.0": "f"}),
    "flow mapping": ("{a: 1, b: {c: ''}, d: }\n", {"a": "1", "b.c": "", "d": ""}),
    "empty collections": ("a: []\nb: {}\nc: d\n", {"c": "d"}),
    "json": ('{"a": "b\\n", "c": [1, 2]}', {"a": "b\n", "c.0": "1", "c.1": "2"}),
    "backslashes": ("a: c:\\new\\\\x\n", {"a": "c:\\new\\\\x"}),
    "shell commands": (
        "- echo $HOME && ls | wc -l > /x 2>&1\n- [sh, -c, 'a; b']\n- test -f /x || touch /x\n",
        {
            "0": "echo $HOME && ls | wc -l > /x 2>&1",
            "1.0": "sh",
            "1.1": "-c",
            "1.2": "a; b",
            "2": "test -f /x || touch /x",
        },
    ),
}

REFUSED = {
    "an anchor": ("a: &x b\n", 1),
    "an alias": ("a: b\nc: *x\n", 2),
    "a tag": ("a: !!binary x\n", 1),
    "a question mark key": ("? a\n: b\n", 1),
    "a tab as indentation": ("a:\n\tb: c\n", 2),
    "a second document": ("a: b\n---\nc: d\n", 2),
    "an item among keys": ("a: b\n- c\n", 2),
    "a key among items": ("- a\nb: c\n", 2),
    "too much indentation": ("a: b\n  c: d\n", 2),
    "too little indentation": ("  a: b\n c: d\n", 2),
    "a word among keys": ("a: b\nword\n", 2),
    "an open quote": ('a: "b\nc: d\n', 2),
    "an open bracket": ("a: [b,\n", 1),
    "a missing comma": ("a: ['b' 'c']\n", 1),
    "text after a quote": ("a: 'b' c\n", 1),
    "text after a bracket": ("a: [b] c\n", 1),
    "an unknown escape": (r'a: "\q"', 1),
    "a colon in a value": ("a: b: c\n", 1),
    "an unknown block header": ("a: |x\n  b\n", 1),
}


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_understood(guest_awk: Awk, name: str) -> None:
    text, expected = UNDERSTOOD[name]
    done = guest_awk("yaml.awk", text)
    assert (done.returncode, done.stderr) == (0, "")
    assert dict(line.split("\t", 1) for line in done.stdout.splitlines()) == {
        path: value.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t") for path, value in expected.items()
    }


@pytest.mark.parametrize("name", REFUSED)
def test_refused_as_a_whole_with_the_line(guest_awk: Awk, name: str) -> None:
    text, line = REFUSED[name]
    done = guest_awk("yaml.awk", text)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"line {line}: ")
    assert done.stderr.count("\n") == 1


def test_a_long_file_is_read_quickly_enough_to_be_read_at_all(guest_awk: Awk) -> None:
    text = "write_files:\n" + "".join(f"  - path: /f{n}\n    content: |\n      {'x' * 200}\n" for n in range(1000))
    assert guest_awk("yaml.awk", text).stdout.count("\n") == 2000


def test_the_explanation_in_the_script_is_true(guest_awk: Awk) -> None:
    text = dedent(
        """\
        runcmd:
          - echo hi
          - [ls, -l]
        """
    )
    assert guest_awk("yaml.awk", text).stdout == "runcmd.0\techo hi\nruncmd.1.0\tls\nruncmd.1.1\t-l\n"
