"""Speed and memory beside an independent implementation: ``python -m benchmarks.<name> [--json]``.

Each needs torch and this project's libraries, but neither Kedro nor MLflow. ``python -m benchmarks.all`` runs
them all. docs/performance.md says what each one compares.
"""
