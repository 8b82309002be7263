"""A whole network whose weights share a small book of Gaussians."""
