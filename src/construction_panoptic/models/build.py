"""The only way from a spec and weights to a model."""

from collections.abc import Callable, Mapping

from torch import Tensor

from construction_panoptic.config.base import nearest
from construction_panoptic.errors import CheckpointError
from construction_panoptic.models.detr.panoptic_model import DetrModel
from construction_panoptic.models.panoptic_deeplab import PanopticDeeplabModel
from construction_panoptic.models.protocol import PanopticModel
from construction_panoptic.models.spec import ModelSpec
from construction_panoptic.models.universal.model import UniversalModel

MODELS: Mapping[str, Callable[[ModelSpec], PanopticModel]] = {
    "detr": DetrModel.from_spec,
    "panoptic_deeplab": PanopticDeeplabModel.from_spec,
    "universal": UniversalModel.from_spec,
}
"""Kind → a function that builds its model with random weights; a new kind of model adds a line."""


def build(spec: ModelSpec, state: Mapping[str, Tensor], source: str = "the checkpoint") -> PanopticModel:
    """Build the model of a spec on the CPU, in eval mode, and fill in its weights; messages name ``source``.

    `CheckpointError` if the kind is unknown, or weights are missing, left over or of another shape; `ParameterError`
    if the architecture is not valid.
    """
    if spec.kind not in MODELS:
        raise CheckpointError(f"{source} holds a model of the kind {spec.kind!r}; {nearest(spec.kind, MODELS)}")
    model = MODELS[spec.kind](spec)
    try:
        model.network.load_state_dict(dict(state))
    except RuntimeError as error:
        raise CheckpointError(f"{source} does not fit the model that it describes: {error}") from error
    model.network.eval()
    return model
