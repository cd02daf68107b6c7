"""Images: where they come from, how they are decoded, ordered, augmented and batched."""
