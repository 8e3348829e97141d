"""What runs a task: one folder per engine (docs/writing-an-engine.md)."""
