"""Files, folders and caches that a task finds in its directory."""
