"""Training of both stages: samples, transforms, the loop, checkpoints. Knows no Kedro and no MLflow."""
