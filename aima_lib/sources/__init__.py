"""Where models come from: one small module a source, each turning a request into a plan of what to download."""
