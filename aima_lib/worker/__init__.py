"""Programs of their own: what an engine's python runs where the engine has no HTTP server. Nothing here imports the rest of AIMA."""
