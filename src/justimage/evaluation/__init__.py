"""How good a model's images are: scores against real ones, with their uncertainty and all that is needed to get them again.

scores.py computes numbers from features; reference.py holds the real images; feature_sampler.py samples a model's images as
features; report.py scores and shows them. search.py finds the best guidance and average, and search_report.py says how sure
that is; passes.py compares solvers by their cost. online.py scores a few samples during training.
"""
