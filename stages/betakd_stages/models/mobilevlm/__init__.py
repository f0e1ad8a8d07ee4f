"""MobileVLM V2: configuration, model, processor and encoder, in the published checkpoint layout."""
