"""Commands that need no Kedro project: ``python -m construction_panoptic predict``, ``serve``, ``app`` and ``init``."""

from typing import Any

import click

from construction_panoptic.errors import UserError

_MODEL, _HOST = "data/06_models/mask_head/best.pt", "127.0.0.1"

model_option = click.option("--model", default=_MODEL, help="The best.pt of a training, or an exported model's folder.")
host_option = click.option("--host", default=_HOST, help="Address to listen on; the server asks nobody who they are.")
device_option = click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N.")


class Command(click.Command):
    """A command that shows its defaults, and a `UserError` as one message."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            raise click.ClickException(str(error)) from error
