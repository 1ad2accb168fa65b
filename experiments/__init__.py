"""One script per result: `python -m experiments.<name> --help` lists its options."""
