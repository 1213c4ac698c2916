"""The documentation, and the scripts that make parts of it: generate.py, gpu_report.py, hooks.py and docstrings.py."""
