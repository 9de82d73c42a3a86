"""Settings: the command line, YAML files and `--set` flags become one checked, frozen model."""
