"""How good a model's images are: scores against real ones, with their uncertainty and all that is needed to get them again.

scores.py is numbers from features; reference.py the real images; examiner.py draws a model's images as features; report.py
scores them and shows them. search.py looks for the best guidance and average, and verdict.py says how sure that is.
online.py scores a few samples during training.
"""
