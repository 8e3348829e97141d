"""`make demo`: a queue, a worker and a task on this machine, until Ctrl-C."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from worker.environment import hide_environment

if TYPE_CHECKING:
    from worker.cli.common import Session
    from worker.config import Config
    from worker.embedded import EmbeddedQueue
    from worker.ports import Ports

TASK_FILE = Path(__file__).parent.parent / "docs" / "examples" / "hello-world.yml"


def main() -> None:
    """Run the demo. Exit 0, or 1 where the task came to another end than completed."""
    hide_environment()
    from worker.cli.common import run_async, set_up_logging

    set_up_logging()
    with TemporaryDirectory(prefix="tc-worker-demo-", ignore_cleanup_errors=True) as folder:
        run_async(lambda: _demonstrate(Path(folder)))


async def _demonstrate(work_dir: Path) -> int:
    import trio

    from worker.cli.common import open_session
    from worker.cli.queueing import exports, joined, open_queue
    from worker.cli.running import supervise
    from worker.config import parse_config
    from worker.ports import Ports

    ports = Ports()
    completed = True

    async def work(config: Config, nursery: trio.Nursery) -> None:
        await supervise(config, ports, on_stop=queue.answer_polls)
        nursery.cancel_scope.cancel()

    async with open_queue(ports, "127.0.0.1", 0, None) as queue:
        config = joined(parse_config({}, {}), queue, work_dir=work_dir)
        print(
            f"A queue runs at {queue.root_url}/ and a worker claims from it. The log of {TASK_FILE.name}:\n", flush=True
        )
        async with open_session(config) as session, trio.open_nursery() as nursery:
            nursery.start_soon(work, config, nursery)
            completed = await _show_task(session, config, ports, queue)
            print("\nTo submit a task of your own, in another terminal:\n")
            for line in exports(queue):
                print(f"  export {line}")
            print("  tc-worker submit TASK.yml --wait\n\nCtrl-C ends queue and worker.", flush=True)
    return 0 if completed else 1


async def _show_task(session: Session, config: Config, ports: Ports, queue: EmbeddedQueue) -> bool:
    """Submit the task and show its log, its end and its artifacts; whether it was completed."""
    from worker.cli.following import copy_log
    from worker.cli.tasks import create_task, wait_until_resolved
    from worker.model import RunKey
    from worker.taskfile import load_task

    task = await ports.run_sync(load_task, TASK_FILE, config.worker.task_queue_id, ports.now())
    task_id = await create_task(session, task)
    await copy_log(session, task_id, follow=True)
    status = await wait_until_resolved(session.queue, task_id, lambda _: None)
    print(f"\nTask {task_id}: {status.state}. Its artifacts:\n")
    for artifact in await session.queue.list_artifacts(RunKey(task_id, 0)):
        print(f"  {artifact.name}\n    {config.root_url}/api/queue/v1/task/{task_id}/artifacts/{artifact.name}")
    print(f"\nOpen it, its log and a form for others in a browser:\n\n  {queue.page_url(f'/tasks/{task_id}')}")
    return status.state == "completed"


if __name__ == "__main__":
    main()
