from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from worker.cli.fetching import path_below

BASE = Path("/some/folder")
PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1)


@given(PRINTABLE | st.lists(st.sampled_from(["", ".", "..", "...", "a", "\\"])).map("/".join))
def test_no_name_leads_out_of_the_folder(name: str) -> None:
    path = path_below(BASE, name)
    assert path.parts[: len(BASE.parts)] == BASE.parts
    assert len(path.parts) > len(BASE.parts)
    assert os.path.normpath(path) == str(path)


def test_ordinary_names_stay() -> None:
    assert path_below(BASE, "public/a.b/c..d") == BASE / "public" / "a.b" / "c..d"
    assert path_below(BASE, "/../x") == BASE / "_" / "__" / "x"
