"""Pictures: where networks look, what they predict, affinities of images, views."""
