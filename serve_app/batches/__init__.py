"""Files and batches as OpenAI has them: many requests in one file, done when there is room."""
