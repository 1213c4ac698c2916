"""The version of this package, which engines and captured graphs on disk are kept under."""

__version__ = "0.2.0"
