"""How far the served law can be believed, measured on episodes that training never saw, and what corrects it."""
