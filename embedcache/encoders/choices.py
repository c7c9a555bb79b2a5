"""Choices about encoders that a command line offers; importing them costs nothing."""

from __future__ import annotations

from typing import Literal

# Ways of fitting a picture into the array of an encoder; see `preprocess.Preprocess`.
Fit = Literal["squash", "crop", "pad-square", "longest-side"]
# Precisions of the computation; 'auto' leaves the choice to the verb.
Precision = Literal["fp32", "bf16", "fp16"]
PrecisionChoice = Literal["auto", "fp32", "bf16", "fp16"]
