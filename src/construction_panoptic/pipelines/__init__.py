"""The project's pipelines: wiring and thin nodes."""
