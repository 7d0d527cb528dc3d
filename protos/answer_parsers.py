"""The names by which an operator may choose how answers are read, instead of what a gateway finds
out from the chat template: vLLM's, where vLLM has the parser.

Here because the launcher's flags and the gateway's readers, which never meet, must agree on them.
"""

AUTO = "auto"
NO_REASONING = "none"
TOOL_CALL_PARSERS = (
    *("cohere_command3", "cohere_command4", "deepseek_r1", "deepseek_v3", "deepseek_v31"),
    *("deepseek_v32", "functiongemma", "gemma4", "glm45", "glm47", "gpt_oss", "granite"),
    *("granite-20b-fc", "granite4", "hermes", "hunyuan_a13b", "internlm", "jamba", "json"),
    *("kimi_k2", "lfm2", "llama3", "llama3_json", "llama4_json", "llama4_pythonic", "mimo"),
    *("minimax_m2", "mistral", "nemotron_json", "nemotron_v3", "olmo3", "openai"),
    *("phi4_mini_json", "pythonic", "qwen3_coder", "qwen3_xml", "seed_oss", "step3p5", "xlam"),
)
REASONING_PARSERS = (
    *("cohere_command3", "cohere_command4", "deepseek_r1", "deepseek_v3", "ernie45", "gemma4"),
    *("glm45", "glm47", "gpt_oss", "granite", "granite33", "holo2", "hunyuan_a13b", "kimi_k2"),
    *("mimo", "minimax_m2", "mistral", "nemotron_v3", "olmo3", "openai_gptoss", "qwen3"),
    *("qwen3_5", "seed_oss", "step3", "step3p5", "think"),
)
