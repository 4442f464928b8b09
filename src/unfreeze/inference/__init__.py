"""Prediction with finished runs, for image files and for images in memory."""
