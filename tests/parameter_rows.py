"""Every field of the two generating requests, and the tests that show what it does.

A row is checked by tests/test_parameter_rows.py: no field without one, no test that does not exist.
"""

LIVE = "tests/integration/test_parameters.py"
CHAT = "tests/gateway/test_chat.py"
GRAMMAR = "tests/gateway/test_structured_outputs.py"
REASONING = "tests/gateway/test_reasoning.py"
TOOLS = "tests/gateway/test_tools.py"
STREAM = f"{LIVE}::test_stream_joined_is_the_whole_answer_and_framed_as_clients_expect"
PENALTY = f"{LIVE}::test_a_penalty_is_subtracted_once_for_one_occurrence"
SPECIAL = f"{LIVE}::test_skip_special_tokens_hides_them"
TOKEN_IDS = f"{LIVE}::test_return_token_ids_are_those_of_the_texts"
TRUNCATION = f"{LIVE}::test_truncate_prompt_tokens_keeps_one_side"
BUDGET = f"{REASONING}::test_a_budget_of_thoughts_is_kept_to_the_token"

ROWS: dict[str, tuple[str, ...]] = {
    # what is asked
    "model": (f"{CHAT}::test_every_served_name_is_answered_under_that_name",),
    "messages": (f"{CHAT}::test_prompt_is_the_rendered_template",),
    "prompt": ("tests/gateway/test_completions.py::test_every_form_of_prompt",),
    "suffix": (
        f"{LIVE}::test_suffix_is_refused_by_a_model_without_such_tokens",
        "tests/gateway/test_infill.py::test_the_texts_on_either_side_stand_between_the_marks",
    ),
    "add_special_tokens": (
        "tests/gateway/test_completions.py::test_special_tokens_can_be_left_out",
    ),
    "add_generation_prompt": (f"{LIVE}::test_add_generation_prompt_is_the_head_of_the_answer",),
    "continue_final_message": (f"{LIVE}::test_continue_final_message_goes_on_in_it",),
    "chat_template_kwargs": (f"{REASONING}::test_where_thinking_is_switched_off_all_is_content",),
    "truncate_prompt_tokens": (TRUNCATION,),
    "truncation_side": (TRUNCATION,),
    "cache_salt": (f"{LIVE}::test_cache_salt_keeps_tenants_apart",),
    # chance
    "temperature": (
        f"{LIVE}::test_temperature_one_draws_as_the_model_scores",
        f"{LIVE}::test_temperature_zero_takes_the_likeliest_and_a_high_one_spreads",
    ),
    "top_k": (f"{LIVE}::test_top_k_leaves_the_k_likeliest",),
    "top_p": (f"{LIVE}::test_top_p_leaves_the_fewest_that_reach_p",),
    "min_p": (f"{LIVE}::test_min_p_drops_what_is_unlikely_beside_the_likeliest",),
    "seed": (f"{LIVE}::test_seed_repeats_and_choices_differ",),
    "n": (f"{LIVE}::test_seed_repeats_and_choices_differ",),
    "best_of": (
        f"{LIVE}::test_best_of_answers_the_likeliest_of_its_candidates",
        "tests/gateway/test_best_of.py::test_the_best_are_answered_best_first",
    ),
    # edits of the scores
    "logit_bias": (f"{LIVE}::test_logit_bias_forces_and_bans",),
    "allowed_token_ids": (f"{LIVE}::test_allowed_token_ids_holds",),
    "bad_words": (f"{LIVE}::test_bad_words_never_come",),
    "frequency_penalty": (PENALTY, "tests/worker/runner/test_sampler.py"),
    "presence_penalty": (PENALTY, "tests/worker/runner/test_sampler.py"),
    "repetition_penalty": (
        f"{LIVE}::test_repetition_penalty_at_its_height_lets_nothing_come_twice",
        "tests/worker/runner/test_sampler.py",
    ),
    # where an answer ends
    "max_tokens": (f"{LIVE}::test_max_tokens_ends_it_under_both_names",),
    "max_completion_tokens": (f"{LIVE}::test_max_tokens_ends_it_under_both_names",),
    "min_tokens": (
        f"{LIVE}::test_min_tokens_delays_the_end",
        f"{LIVE}::test_min_tokens_delays_stop_strings_too",
    ),
    "ignore_eos": (f"{LIVE}::test_ignore_eos_goes_on",),
    "stop": (f"{LIVE}::test_stop_strings_cut_and_may_be_included",),
    "include_stop_str_in_output": (f"{LIVE}::test_stop_strings_cut_and_may_be_included",),
    "stop_token_ids": (f"{LIVE}::test_stop_token_ids_end_it_and_are_not_text",),
    "timeout": (
        f"{LIVE}::test_timeout_ends_what_takes_longer",
        "tests/gateway/test_tenancy.py::test_a_timeout_travels_with_the_request",
    ),
    # what an answer tells
    "echo": (f"{LIVE}::test_echo_puts_the_prompt_first",),
    "logprobs": (f"{LIVE}::test_logprobs_have_the_form_of_their_endpoint",),
    "top_logprobs": (f"{LIVE}::test_logprobs_have_the_form_of_their_endpoint",),
    "prompt_logprobs": (f"{LIVE}::test_prompt_logprobs_are_what_sampling_saw",),
    "return_token_ids": (TOKEN_IDS,),
    "skip_special_tokens": (SPECIAL,),
    "spaces_between_special_tokens": (SPECIAL,),
    "request_id": (f"{LIVE}::test_request_id_names_the_answer",),
    "stream": (STREAM,),
    "stream_options": (
        STREAM,
        f"{LIVE}::test_continuous_usage_stats_grow_with_the_answer",
        f"{LIVE}::test_without_include_usage_there_is_none",
    ),
    # constraints, tools, thoughts
    "structured_outputs": (f"{LIVE}::test_structured_outputs_hold",),
    "response_format": (f"{LIVE}::test_response_format_holds",),
    "guided_json": (f"{GRAMMAR}::test_a_schema_is_held",),
    "guided_json_object": (f"{GRAMMAR}::test_json_mode_takes_any_object_and_only_objects",),
    "guided_regex": (f"{GRAMMAR}::test_regex_and_choice_are_held",),
    "guided_choice": (f"{GRAMMAR}::test_regex_and_choice_are_held",),
    "guided_grammar": (f"{GRAMMAR}::test_grammars_are_lark_or_ebnf",),
    "guided_whitespace_pattern": (f"{GRAMMAR}::test_json_is_written_as_asked",),
    "tools": ("tests/integration/test_tools.py::test_a_tool_is_called_where_one_must_be",),
    "tool_choice": (
        "tests/integration/test_tools.py::test_the_named_tool_is_called",
        f"{TOOLS}::test_tools_that_must_not_be_called_are_not_looked_for",
    ),
    "parallel_tool_calls": (f"{TOOLS}::test_only_the_first_call_is_kept_where_one_is_wanted",),
    "reasoning_effort": (f"{REASONING}::test_an_effort_is_told_to_the_template",),
    "include_reasoning": (f"{REASONING}::test_unwanted_thoughts_are_hidden_with_their_tokens",),
    "thinking_token_budget": (BUDGET,),
    "max_thinking_tokens": (BUDGET,),
    # who asks
    "user": (
        f"{LIVE}::test_what_only_concerns_openais_own_service_is_taken",
        "tests/cluster/test_placement_queue.py::test_tenants_share_what_comes_free",
    ),
    "priority": (
        "tests/gateway/test_tenancy.py::test_name_and_priority_reach_the_cluster",
        "tests/gateway/test_tenancy.py::test_a_router_in_front_may_set_the_priority_by_vllms_header",
        "tests/cluster/test_fair_queue.py::test_lower_priority_numbers_come_first",
        "tests/worker/engine/test_engine.py::test_urgent_request_is_admitted_first",
        "tests/worker/engine/test_engine.py::test_urgent_request_does_not_wait_for_a_less_urgent_one",
    ),
}
