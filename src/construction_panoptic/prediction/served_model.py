"""The model as MLflow serves it. MLflow keeps a copy of this file in the model's folder and runs that."""

from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext

from construction_panoptic.errors import UserError
from construction_panoptic.parallel.device import resolve_device
from construction_panoptic.prediction.answering import answer
from construction_panoptic.prediction.exported import load_exported
from construction_panoptic.prediction.models import TrainedModel


class PanopticModel(PythonModel):
    """Answers with the segments of images; see `answer`."""

    _trained: TrainedModel

    def load_context(self, context: PythonModelContext) -> None:
        """Build the model from the exported one in the folder, on CUDA where there is one."""
        self._trained = load_exported(context.artifacts["model"])
        self._trained.model.to(resolve_device("auto"))

    def predict(  # type: ignore[override]  # MLflow gives a context only to a method that has one
        self, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Predict the images in the column ``image``; ``params`` can give a ``threshold``.

        Raises:
            MlflowException: an image cannot be read; a server answers with the status 400 and the message.
        """
        # MLflow makes one row of {"image": [several]}.
        images = model_input["image"].explode().tolist()
        try:
            return answer(self._trained, images, (params or {}).get("threshold"))
        except UserError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error


set_model(PanopticModel())
