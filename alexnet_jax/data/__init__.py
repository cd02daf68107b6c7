"""From a named data set to batches of uint8 crops: sources, random draws, pipelines, statistics."""
