"""The entry for the model that MLflow serves."""

import base64
import shutil
import tempfile
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, infer_signature
from mlflow.pyfunc import PyFuncModel, load_model, save_model
from mlflow.types.schema import AnyType, ColSpec, DataType, ParamSchema, ParamSpec, Schema
from PIL import Image

from construction_panoptic.catalog.files import LocalDataset
from construction_panoptic.errors import UserError, first_line
from construction_panoptic.files import write_json
from construction_panoptic.models.files import export_model
from construction_panoptic.prediction.answering import ModelToServe

PACKAGE = Path(__file__).parents[1]
REGISTRATION = "registration.json"
# What predicting takes; the project itself goes into the folder.
REQUIREMENTS = (
    *("av", "imagehash", "mlflow", "numpy", "pandas", "pillow", "pycocotools", "pydantic", "safetensors", "scipy"),
    *("torch", "torchvision", "tqdm"),
)


class ServedModelDataset(LocalDataset):
    """A folder with an MLflow pyfunc model, which is also registered in MLflow's model registry.

    The folder is self-contained: weights, description, the code of this project, and the versions of the libraries;
    ``registration.json`` in it is written last.
    """

    INDEX = REGISTRATION

    def load(self) -> PyFuncModel:
        """Give the model; its ``predict`` takes a table with the column ``image``."""
        return load_model(str(self._filepath))

    def save(self, data: ModelToServe) -> None:
        """Write the folder and register the model; if the registry raises a `UserError`, the folder is there."""
        (self._filepath / REGISTRATION).unlink(missing_ok=True)
        self._filepath.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._filepath.parent, prefix=".served_") as temporary:
            exported, folder = Path(temporary, "exported"), Path(temporary, "model")
            export_model(data.model, exported)
            save_model(
                folder,
                python_model=str(PACKAGE / "prediction" / "served_model.py"),
                code_paths=[str(PACKAGE)],
                artifacts={"model": str(exported)},
                signature=_signature(),
                input_example=_input_example(),
                pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in REQUIREMENTS],
            )
            shutil.rmtree(self._filepath, ignore_errors=True)
            folder.rename(self._filepath)
        registered = None if data.name is None else _register(self._filepath, data.name)
        write_json(self._filepath / REGISTRATION, registered)


def _signature() -> ModelSignature:
    """Describe input, output and the parameter; see `prediction.answering.answer`."""
    rle = {"size": [1, 1], "counts": ""}
    named = {"id": 1, "category_id": 1, "class": "", "isthing": True}
    segment = {**named, "area": 1, "bbox": [0, 0, 1, 1], "score": 0.5, "rle": rle}
    answers = pd.DataFrame([{"width": 1, "height": 1, "segments": [segment], "png": ""}])
    signature = infer_signature(model_output=answers)
    signature.inputs = Schema([ColSpec(AnyType(), "image")])
    signature.params = ParamSchema([ParamSpec("threshold", DataType.double, None)])
    return signature


def _input_example() -> pd.DataFrame:
    """Give a small picture as base64, as one would send it."""
    stream = BytesIO()
    Image.radial_gradient("L").resize((96, 64)).convert("RGB").save(stream, format="PNG")
    return pd.DataFrame({"image": [base64.b64encode(stream.getvalue()).decode()]})


def _register(folder: Path, name: str) -> dict[str, Any]:
    """Log a model's folder as an MLflow logged model, of the active run if there is one, and register it."""
    run = mlflow.active_run()
    tags = {} if run is None else {"run_id": run.info.run_id}
    try:
        model = mlflow.initialize_logged_model(name, tags=tags)
        mlflow.MlflowClient().log_model_artifacts(model.model_id, str(folder))
        mlflow.finalize_logged_model(model.model_id, "READY")
        registered = mlflow.register_model(f"models:/{model.model_id}", name, tags=tags)
    except (MlflowException, OSError) as error:
        raise UserError(
            f"The model is in {folder}, but MLflow ({mlflow.get_tracking_uri()}) did not register it as {name!r}: "
            f"{first_line(error)} Run model_export again, or set model_export.registered_name to null."
        ) from error
    about = {"name": name, "version": registered.version, "model_id": model.model_id, "run_id": model.source_run_id}
    return {**about, "uri": f"models:/{name}/{registered.version}"}
