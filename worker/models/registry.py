"""Model families by architecture name: one file and one line here add a family.

Other packages add theirs by an entry point of the group `shoal.families` that names a Family. They
are asked only when no family from here fits, so that no plug-in can slow down or break the rest.
"""

from importlib.metadata import EntryPoint, entry_points

from worker.errors import CheckpointError
from worker.models.config import ModelConfig
from worker.models.families import (
    bloom,
    codegen,
    cohere,
    cohere2,
    deepseek,
    falcon,
    gemma,
    gemma2,
    gemma3,
    glm,
    glm4_moe,
    gpt2,
    gpt_bigcode,
    gpt_neo,
    gpt_neox,
    gpt_oss,
    gptj,
    granite,
    llama,
    mistral,
    mixtral,
    mpt,
    olmo,
    olmo2,
    olmo3,
    olmoe,
    opt,
    phi,
    phi3,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
    smollm3,
    stablelm,
    starcoder2,
)
from worker.models.family import Family

FAMILIES: tuple[Family, ...] = (
    llama.FAMILY,
    mistral.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
    gemma.FAMILY,
    gemma2.FAMILY,
    gemma3.FAMILY,
    gemma3.TEXT_PART,
    phi3.FAMILY,
    olmo2.FAMILY,
    olmo3.FAMILY,
    granite.FAMILY,
    smollm3.FAMILY,
    glm.FAMILY,
    glm4_moe.FAMILY,
    stablelm.FAMILY,
    mixtral.FAMILY,
    qwen2_moe.FAMILY,
    qwen3_moe.FAMILY,
    olmoe.FAMILY,
    gpt_oss.FAMILY,
    deepseek.FAMILY,
    bloom.FAMILY,
    cohere.FAMILY,
    falcon.FAMILY,
    gpt2.FAMILY,
    gpt_bigcode.FAMILY,
    gpt_neox.FAMILY,
    gptj.FAMILY,
    mpt.FAMILY,
    opt.FAMILY,
    phi.FAMILY,
    starcoder2.FAMILY,
    codegen.FAMILY,
    cohere2.FAMILY,
    gpt_neo.FAMILY,
    olmo.FAMILY,
)


PLUGIN_GROUP = "shoal.families"


def find_family(config: ModelConfig) -> Family:
    """Raises: CheckpointError naming the architecture and the supported ones, or the plug-ins that
    might have had it but are broken.
    """
    for family in FAMILIES:
        if config.architecture in family.architectures:
            return family
    return _find_plugged_in(config)


def supported_architectures() -> list[str]:
    """Of the families from here."""
    return sorted(name for family in FAMILIES for name in family.architectures)


def _find_plugged_in(config: ModelConfig) -> Family:
    names, failures = supported_architectures(), []
    for plugin in entry_points(group=PLUGIN_GROUP):
        try:
            family = _load_plugin(plugin)
        except CheckpointError as error:
            failures.append(str(error))
            continue
        if config.architecture in family.architectures:
            return family
        names += family.architectures
    raise CheckpointError(
        "\n".join(
            [
                f"{config.path}: architecture {config.architecture} is not supported; "
                f"supported: {', '.join(sorted(names))}",
                *failures,
            ]
        )
    )


def _load_plugin(plugin: EntryPoint) -> Family:
    where = f"the family plug-in {plugin.name} ({plugin.value})"
    if plugin.dist is not None:
        where += f" of {plugin.dist.name} {plugin.dist.version}"
    try:
        family = plugin.load()
    except Exception as error:  # whatever foreign code raises becomes one clear error
        raise CheckpointError(
            f"{where} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(family, Family):
        raise CheckpointError(f"{where} is no Family but {type(family).__name__}")
    return family
