"""Distributional Sobolev Training: the joint law of the return and of its gradients, learned and exported.

Source of the method: Debes and Tuytelaars, "Distributional value gradients for stochastic environments", ICLR 2026, arXiv 2601.20071.
Axes of tensors: E critics, B batch, N and M samples, S observation, A action, D = 1 + gradient components.
"""
