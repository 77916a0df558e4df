"""World models: each gives the law of one step, differentiable in state and action."""
