"""Architectures of the library ``transformers``, by ``model_type``: its own names of fields, and its own defaults.

A configuration has only the plain fields that are listed here: no code, nothing that is downloaded. The network starts
from random weights. This package knows neither torch nor transformers.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from typing_extensions import TypeAliasType

from featurespeed.contract.architecture.huggingface.base import HuggingFace
from featurespeed.contract.architecture.huggingface.bert import Bert
from featurespeed.contract.architecture.huggingface.convnext import ConvNext
from featurespeed.contract.architecture.huggingface.gpt2 import Gpt2
from featurespeed.contract.architecture.huggingface.llama import Llama, Qwen2
from featurespeed.contract.architecture.huggingface.resnet import ResidualNet
from featurespeed.contract.architecture.huggingface.vit import Vit

__all__ = ["Bert", "ConvNext", "Gpt2", "HuggingFace", "HuggingFaceModel", "Llama", "Qwen2", "ResidualNet", "Vit"]

HuggingFaceModel = TypeAliasType(
    "HuggingFaceModel",  # a definition of its own in schemas: OpenAPI's discriminators point to definitions alone
    Annotated[Gpt2 | Llama | Qwen2 | Bert | Vit | ConvNext | ResidualNet, Field(discriminator="model_type")],
)
