"""Low-rank members as LoRA adapters of Hugging Face's peft, and such adapters as members.

    member_0/adapter_config.json            ranks, scales, which modules
    member_0/adapter_model.safetensors      `base_model.model.<module>.lora_A.weight`, ...

peft is not needed: the format is two files.
"""

from bayesify.integrations.peft.exporting import export_adapters
from bayesify.integrations.peft.importing import import_adapters

__all__ = ["export_adapters", "import_adapters"]
