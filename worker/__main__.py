"""`python -m worker` and `tc-worker`: argv to a command."""

from __future__ import annotations

from worker import garbage
from worker.environment import hide_environment


def main() -> None:
    """Run the command that argv names; ends the process with its exit code."""
    hide_environment()
    garbage.pause()
    from worker.cli import commands  # not at the top: it would be imported twice

    commands(prog_name="tc-worker")


if __name__ == "__main__":
    main()
