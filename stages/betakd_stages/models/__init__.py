"""Model folders: loading any supported family, and building tiny ones in a real architecture."""
