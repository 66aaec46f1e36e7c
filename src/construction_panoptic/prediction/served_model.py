"""The model as MLflow serves it. MLflow keeps a copy of this file in the model's folder and runs that."""

import os
import threading
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext

from construction_panoptic.errors import UserError
from construction_panoptic.evaluation.inference import on_device
from construction_panoptic.models.files import load_exported
from construction_panoptic.prediction.answering import IMAGE_FOLDER, answer


class ServedModel(PythonModel):
    """Answers with the segments of images; see `answer`. It works on one request at a time, whatever serves it."""

    def load_context(self, context: PythonModelContext) -> None:
        """Build the model from the exported one in the folder, on CUDA where there is one."""
        self._model = on_device(load_exported(context.artifacts["model"]), "auto")
        self._folder = Path(os.environ[IMAGE_FOLDER]).absolute() if os.environ.get(IMAGE_FOLDER) else None
        self._turn = threading.Lock()

    def predict(  # type: ignore[override]  # MLflow gives a context only to a method that has one
        self, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Predict the images in the column ``image``; ``params`` can give a ``threshold``.

        A server answers with the status 400 and the message of an `MlflowException` to what cannot be read.
        """
        # MLflow makes one row of {"image": [several]}.
        images = model_input["image"].explode().tolist()
        try:
            with self._turn:
                return answer(self._model, images, (params or {}).get("threshold"), self._folder)
        except UserError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error


set_model(ServedModel())
