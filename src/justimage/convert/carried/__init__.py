"""Code that `diffusers_folder.py` writes into a folder for diffusers, each file joined with the rooms that it imports. Nothing
in the package imports it: it needs diffusers, and need not have justimage beside it."""
