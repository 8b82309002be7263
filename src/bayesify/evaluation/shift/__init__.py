"""Common corruptions of images, and how gracefully a posterior fails on them."""
