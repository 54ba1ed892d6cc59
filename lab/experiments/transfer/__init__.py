"""Features of other images: where they come from, and what they are worth."""
