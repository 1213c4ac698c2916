"""Exceptions of this package. Each message says what failed and where, why, and what to do."""


class BridgeError(Exception):
    """Base of every error of this package."""


class OptionsError(BridgeError, ValueError):
    """Option that is unknown, out of its range, or in contradiction to another."""


class CaptureError(BridgeError):
    """Model that PyTorch could not turn into a graph."""


class CalibrationError(BridgeError):
    """Calibration data or calibration file that cannot be used."""


class UnsupportedOpError(BridgeError):
    """Operator that stays in PyTorch although ``fallback="error"`` asks for all of them in TensorRT."""


class LoweringError(BridgeError):
    """Subgraph that could not be written as a TensorRT network."""


class BuildError(BridgeError):
    """Network from which TensorRT could not build an engine."""


class EngineLoadError(BridgeError):
    """Missing TensorRT, or an engine or saved program that cannot be loaded here."""


class ShapeRangeError(BridgeError, ValueError):
    """Input of a shape, dtype or device that the compiled program was not built for."""
