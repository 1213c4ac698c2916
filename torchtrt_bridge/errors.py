"""Every exception of this package. Each message says what failed and where, why, and what to do."""


class BridgeError(Exception):
    """The base of every error raised here."""


class OptionsError(BridgeError, ValueError):
    """An option is unknown, out of its range, or contradicts another."""


class CaptureError(BridgeError):
    """PyTorch could not turn the model into a graph."""


class CalibrationError(BridgeError):
    """Calibration data or a calibration file cannot be used."""


class UnsupportedOpError(BridgeError):
    """An operator stays in PyTorch although ``fallback="error"`` asks for all of them in TensorRT."""


class LoweringError(BridgeError):
    """A subgraph could not be written as a TensorRT network."""


class BuildError(BridgeError):
    """TensorRT could not build an engine from a network."""


class EngineLoadError(BridgeError):
    """TensorRT is missing, or an engine or a saved program cannot be loaded here."""


class ShapeRangeError(BridgeError, ValueError):
    """An input has a shape, dtype or device that the compiled program does not serve."""
