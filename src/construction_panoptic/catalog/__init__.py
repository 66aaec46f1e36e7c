"""The Kedro datasets that are no stock ones, and hooks that keep files whole, fresh and locked."""
