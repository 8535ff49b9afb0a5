"""Pictures: where networks look, what they predict, whom BAKE's images listen to, views."""
