"""Several teachers, a cache each: their mixture as one teacher, and each as a channel of its own."""
