"""What happens around a task: one file or folder per plugin (docs/writing-a-plugin.md)."""
