"""Heat maps, nearest training images and explanations of misclassified images."""
