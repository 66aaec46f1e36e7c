"""Every typed parameter, with its unit and its origin. It knows no torch, no Kedro and no files."""
