"""Change detection between an optical image from before and a SAR image from after."""

__version__ = "0.1.0"
