"""The report of a compilation, as data, text and HTML; progress bars and warnings."""
