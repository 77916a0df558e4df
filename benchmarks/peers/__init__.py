"""What other people serve a policy with, measured beside this project: one file each, run in an environment of its own."""
