"""Crops, augmentation and views of images, and cached features of frozen networks."""
