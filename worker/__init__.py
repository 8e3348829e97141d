"""A Taskcluster worker: claims tasks from a queue, runs them, streams their logs and reports how they ended."""
