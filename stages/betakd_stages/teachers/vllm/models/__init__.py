"""Model classes that vLLM imports by their names, and nobody else: they need it when they are imported."""
