"""One script per result; each runs as `python -m experiments.<name>`, and `--help` lists its options."""
