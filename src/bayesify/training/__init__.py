"""From a network and data to a posterior: the problem, the objective, the loop and its checks."""
