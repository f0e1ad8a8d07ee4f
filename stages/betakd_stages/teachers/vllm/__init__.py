"""Teachers run by vLLM. Nothing outside this package imports vLLM, and nothing in here before it is asked for."""
