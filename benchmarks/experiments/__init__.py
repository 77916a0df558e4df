"""dst-experiment: grids of training runs, and the tables they leave."""
