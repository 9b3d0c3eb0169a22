"""When a thought has used up its budget, and which token then closes it.

Knows nothing about logits or text.
"""

from ernie45.config.sampling import ThinkingBudget


def forced_token(budget: ThinkingBudget, num_generated: int, is_closed: bool) -> int | None:
    """The token that must come after `num_generated` generated ones; None if the model is free to choose.

    is_closed: whether the end of the thought is among them. Until it is, its place in the forced sequence is known by counting.
    """
    if is_closed or num_generated < budget.max_tokens:
        return None
    place = num_generated - budget.max_tokens
    # Past them comes only who is asked about a draft that did not close the thought, and is wrong for that.
    return budget.end_token_ids[place] if place < len(budget.end_token_ids) else None
