"""How fast this project is on a machine (dst-bench), and how well its methods learn (dst-experiment, dst-report)."""
