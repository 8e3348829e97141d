from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.environment import decode_environment, encode_environment, harmless

CHILD = """
from worker.environment import hide_environment
import os
before = os.getpid()
hide_environment()
import json, sys, pathlib
print(json.dumps({
    "pid": before, "environ": dict(os.environ), "argv": sys.argv, "fds": sorted(os.listdir("/proc/self/fd"), key=int),
    "block": pathlib.Path("/proc/self/environ").read_text(), "cmdline": pathlib.Path("/proc/self/cmdline").read_text(),
}), flush=True)
sys.stdin.read()
"""

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_a_token_is_not_to_be_seen_from_outside() -> None:
    environ = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TASKCLUSTER_ACCESS_TOKEN": "sesame", "ODD": "ä\nb=c"}
    command = [sys.executable, "-c", CHILD, "an argument"]
    with subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert told["pid"] == process.pid
        assert told["argv"] == ["-c", "an argument"]
        assert told["environ"] == environ
        assert "sesame" not in told["block"]
        assert "sesame" not in told["cmdline"]
        assert told["block"].startswith("PATH=")
        assert len(told["fds"]) == 4  # the standard streams and the folder being listed
        assert _as_others_see_it(process.pid, "environ") in (None, told["block"])
        process.communicate()
    assert process.returncode == 0


@linux
def test_a_harmless_environment_is_left_alone() -> None:
    code = "print('image'); from worker.environment import hide_environment; hide_environment()"
    environ = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, check=True)
    assert done.stdout == b"image\n"


@given(
    st.dictionaries(
        st.binary(min_size=1).filter(lambda name: b"=" not in name and b"\0" not in name),
        st.binary().filter(lambda value: b"\0" not in value),
    )
)
def test_an_environment_comes_back(environ: dict[bytes, bytes]) -> None:
    assert decode_environment(encode_environment(environ)) == environ


def test_what_is_harmless() -> None:
    assert all(harmless(name) for name in ("PATH", "LC_ALL", "PYTHONPATH", "XDG_STATE_HOME", "NO_COLOR"))
    assert not any(harmless(name) for name in ("TASKCLUSTER_ACCESS_TOKEN", "AWS_SECRET_ACCESS_KEY", "PATH2", "LCD"))


def _as_others_see_it(pid: int, name: str) -> str | None:
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except PermissionError:
        return None
