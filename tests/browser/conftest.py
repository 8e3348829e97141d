"""One Chromium for all tests, and a new page with an empty profile for each."""

from __future__ import annotations

import shutil
from collections.abc import AsyncGenerator, Generator

import pytest
import trio
from chromium import PROGRAM, Page, open_page, run_chromium


@pytest.fixture(scope="session")
def chromium() -> Generator[str, None, None]:
    """Where Chromium takes commands."""
    if shutil.which(PROGRAM) is None:
        pytest.skip(f"needs Debian's package {PROGRAM}; `make browser` installs it")
    with run_chromium() as endpoint:
        yield endpoint


@pytest.fixture
async def page(chromium: str) -> AsyncGenerator[Page, None]:
    """An empty page; in the end it must have had nothing to complain of."""
    with trio.fail_after(60):
        async with open_page(chromium) as page:
            yield page
            assert page.complaints == []
